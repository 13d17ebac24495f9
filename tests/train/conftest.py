"""Made examples for the tests of training: a seeded table that a model can learn."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from drivetrain.core.batch import Batch
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Order, Shard, Source, Split


class Made:
    """Examples in memory: ``y`` depends on a number, an index and their product."""

    def __init__(self, rows: int = 2000, seed: int = 0, validate: int = 500) -> None:
        self.features = FeatureSchema(
            (
                FeatureField(name="a", kind="dense", width=2),
                FeatureField(name="b", kind="dense"),
                FeatureField(name="c", kind="index", cardinality=7),
                FeatureField(name="d", kind="index", cardinality=5),
                FeatureField(name="words", kind="bag", width=3, cardinality=11),
            )
        )
        self.targets = Schema((Field("y", "int64"), Field("z", "float64")))
        generator = np.random.default_rng(seed)
        self.tables = {
            "train": self._made(rows, generator),
            "validate": self._made(validate, generator),
        }

    @property
    def events(self) -> Source:
        raise AssertionError("the loop needs no events")

    @staticmethod
    def _made(rows: int, generator: np.random.Generator) -> dict[str, Any]:
        dense = generator.normal(size=(rows, 3)).astype(np.float32)
        index = generator.integers(0, (7, 5), (rows, 2))
        score = 2 * dense[:, 0] * (index[:, 0] % 2 - 0.5) + dense[:, 2] + (index[:, 1] == 3)
        z = score + 0.1 * generator.normal(size=rows)
        y = (generator.random(rows) < 1 / (1 + np.exp(-2 * score))).astype(np.int64)
        words = generator.integers(0, 11, (rows, 3))
        return {"dense": dense, "index": index, "words": words, "y": y, "z": z}

    def rows(self, split: Split) -> int | None:
        return len(self.tables[split]["y"])

    def batches(
        self,
        split: Split,
        shard: Shard = Shard(),
        *,
        size: int,
        order: Order | None = None,
        start: int = 0,
    ) -> Iterator[Batch]:
        table = self.tables[split]
        rows = np.arange(len(table["y"]))
        if order is not None:
            np.random.default_rng((order.seed, order.epoch)).shuffle(rows)
        for first in range(start, len(rows), size):
            part = np.array_split(rows[first : first + size], shard.count)[shard.index]
            yield Batch({name: column[part] for name, column in table.items()})


@pytest.fixture(scope="session")
def made() -> type[Made]:
    """The class of made examples."""
    return Made


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
