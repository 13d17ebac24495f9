"""A made world of two tastes, for the tests of two towers: who had what, features and histories."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from drivetrain.core.batch import Batch, Categorical
from drivetrain.core.schema import MISSING_INT, FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Shard, Split

USERS, ITEMS, RECENT = 90, 60, 4
WHO = FeatureField(name="who", kind="index", cardinality=USERS)
FEATURES = (
    FeatureField(name="age", kind="dense", width=2),
    FeatureField(name="land", kind="index", cardinality=5),
    WHO,
    FeatureField(name="words", kind="bag", width=3, cardinality=7),
    FeatureField(name="face", kind="tensor", shape=(2, 2)),
)


@dataclass
class Tastes:
    """Even users like even numbers, odd users odd ones; low numbers are had more often.

    The first two users are missing and rare, the last five have no rows. Batches of events have
    other borders than those of the examples.
    """

    text: bool = False
    more: bool = False
    train: int = 3000
    features: FeatureSchema = field(init=False)
    targets = Schema(())

    def __post_init__(self) -> None:
        self.features = FeatureSchema(FEATURES if self.more else (WHO,))

    @property
    def events(self) -> "Events":
        return Events(self)

    def rows(self, split: Any) -> int:
        return {"train": self.train, "validate": 200, "test": 400}[split]

    def table(self, split: Any) -> dict[str, Any]:
        random = np.random.default_rng(["train", "validate", "test"].index(split))
        rows = self.rows(split)
        user = random.integers(0, USERS - 5, rows)
        number = numbers(random, user % 2)
        if split == "validate":
            number[0] = 2 * ITEMS  # nobody had it in training
        recent = np.stack([numbers(random, user % 2) for _ in range(RECENT)], axis=1)
        recent[random.random(recent.shape) < 0.3] = MISSING_INT
        age = np.stack([user % 2 * 2.0 - 1, random.normal(size=rows)], axis=1)
        return {
            "index": np.stack([random.integers(0, 5, rows), user], axis=1)
            if self.more
            else user[:, None],
            "dense": age.astype(np.float32),
            "words": random.integers(0, 7, (rows, 3)),
            "face": random.normal(size=(rows, 2, 2)).astype(np.float32),
            "item": named(number) if self.text else number,
            "recent": named(recent) if self.text else recent,
            "stars": random.integers(0, 4, rows),
        }

    def batches(self, split: Any, *args: Any, size: int, **kwargs: Any) -> Iterator[Batch]:
        table = self.table(split)
        for first in range(0, self.rows(split), 150):
            yield Batch({n: table[n][first : first + 150] for n in self.features.tensors.names})


def numbers(random: np.random.Generator, taste: Any) -> Any:
    """Numbers of a taste, low ones more often."""
    number = (random.random(len(taste)) ** 1.5 * ITEMS // 2).astype(np.int64) * 2 + taste
    strange = random.random(len(taste)) < 0.1
    return np.where(strange, random.integers(0, ITEMS, len(taste)), number)


def named(number: Any) -> Any:
    """Items as text."""
    names = [f"i{n}" if n != MISSING_INT else "" for n in number.reshape(-1).tolist()]
    return np.array(names, object).reshape(number.shape)


@dataclass
class Events:
    tastes: Tastes

    @property
    def schema(self) -> Schema:
        kind: Any = "string" if self.tastes.text else "int64"
        return Schema((Field("item", kind), Field("recent", kind, (RECENT,))))

    def batches(self, split: Any, *args: Any) -> Iterator[Batch]:
        table = self.tastes.table(split)
        for first in range(0, self.tastes.rows(split), 170):
            part = {n: table[n][first : first + 170] for n in ("item", "recent", "stars")}
            if self.tastes.text:
                values, codes = np.unique(part["item"], return_inverse=True)
                part["item"] = Categorical(codes.astype(np.int32), np.append(values, "unused"))
            yield Batch(part)


@dataclass(frozen=True)
class Attributes:
    """A table of all items and of some that nobody had: what taste each is of, as a category."""

    new: int = 10
    schema = Schema((Field("item", "int64"), Field("taste", "string")))

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator[Batch]:
        if split == "train":
            item = np.arange(ITEMS + self.new)
            yield Batch({"item": item, "taste": np.array(["even", "odd"], object)[item % 2]})
