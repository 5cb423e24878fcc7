"""Benches: organisms of one base side by side, to which every test does the same."""
