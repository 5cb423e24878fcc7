"""Speed against peers, both sides in the same run."""
