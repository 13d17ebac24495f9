"""The two towers that these tests train, what they answer, and the pairs of made tastes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tastes import RECENT, Tastes  # beside this file

from drivetrain.core.schema import Field
from drivetrain.train import (
    Single,
)
from drivetrain.train.recall.interactions import Interactions, read
from drivetrain.train.sampled_softmax import SampledSoftmax
from drivetrain.train.towers.pairs import Pairs, paired
from drivetrain.train.two_tower import TwoTower

TRAIN = Single(loss=SampledSoftmax(mixed=32), epochs=6, batch_size=128, lr=0.02)

METHOD = TwoTower(target="item", user="who", k=10, dim=8, train=TRAIN)

HOLDING = replace(METHOD, history="recent", hidden=(12,), pooling="attention")


def had(tastes: Tastes) -> Interactions:
    column = tastes.features.slice("who").start
    return read(tastes, column=column, item="item", weight=None, emit=lambda item: None)  # type: ignore[arg-type]


def likes(answer: tuple[Any, Any], taste: Any, first: int = 10) -> Any:
    """The share of the first items of each row that are of a taste."""
    numbers = [[int(str(item).removeprefix("i")) for item in row[:first]] for row in answer[0]]
    return (np.array(numbers) % 2 == np.broadcast_to(taste, len(numbers))[:, None]).mean(1)


def pairs(tastes: Tastes, folder: Path, **changes: Any) -> Pairs:
    field = Field("recent", "string" if tastes.text else "int64", (RECENT,))
    found = changes.pop("found", None) or had(tastes)
    options = {"item": "item", "history": field, "weight": "stars", **changes}
    emit: Any = lambda item: None  # noqa: E731
    column = tastes.features.slice("who").start
    return paired(tastes, found, column=column, directory=folder, emit=emit, **options)  # type: ignore[arg-type]
