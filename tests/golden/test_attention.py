"""Architectures with attention alone: log-probs and activations are those of plain transformers and peft."""

import pytest
from architectures import ATTENTION, check_architecture


@pytest.mark.parametrize("kind", ATTENTION)
def test_an_architecture(kind, tmp_path, home):
    check_architecture(kind, tmp_path)
