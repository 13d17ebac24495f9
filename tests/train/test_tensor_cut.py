"""Layers that are cut: what is refused."""

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from drivetrain.train.tensor.cut import cut_dropouts
from drivetrain.train.tensor.trial import Tried


def test_a_dropout_of_parts_and_of_wholes_is_refused() -> None:
    model = nn.ModuleDict({"drop": nn.Dropout(0.1)})
    whole = Tried([], {}, {"drop": [(4, 16), (4, 8)]})
    found = Tried([], {}, {"drop": [(4, 8), (4, 8)]})
    mesh: Any = SimpleNamespace(model=SimpleNamespace(size=2, rank=0))
    with pytest.raises(ValueError, match="'drop': found 'a dropout of what is cut"):
        cut_dropouts(model, found, whole, mesh)
