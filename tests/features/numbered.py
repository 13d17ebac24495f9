"""A source of numbered rows, a transform of them, and the examples that both make."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from drivetrain.core.batch import Batch
from drivetrain.core.schema import MISSING_INT, FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Shard, Split
from drivetrain.features.examples import Examples

TARGETS = Schema((Field("late", "int64"), Field("delay", "float64")))


@dataclass
class Numbered:
    """A source whose row ``i`` is the number ``i``; remembers what was read."""

    length: int
    at_once: int = 7
    lacks: tuple[int, ...] = ()
    read: list[int] = field(default_factory=list)
    schema: Schema = Schema((Field("row", "int64"), *TARGETS, Field("text", "string")))

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator[Batch]:
        rows = np.arange(self.length)[shard.index :: shard.count]
        for start in range(0, len(rows), self.at_once):
            part = rows[start : start + self.at_once]
            self.read.append(len(part))
            late = np.where(np.isin(part, self.lacks), MISSING_INT, part % 2)
            text = np.array(["x"] * len(part), dtype=object)
            yield Batch({"row": part, "late": late, "delay": part / 4, "text": text})


@dataclass
class Twice:
    """A transform: dense is the row and its double, index the row modulo ten."""

    transformed: int = 0
    features: FeatureSchema = FeatureSchema(
        (
            FeatureField(name="number", kind="dense", width=2),
            FeatureField(name="digit", kind="index", cardinality=10),
            FeatureField(name="words", kind="bag", width=3, cardinality=70_000),
            FeatureField(name="image", kind="tensor", shape=(2, 2)),
        )
    )

    def run(self, batch: Batch) -> Batch:
        self.transformed += len(batch)
        row = batch["row"]
        return Batch(
            {
                "dense": np.stack([row, 2 * row], axis=1).astype(np.float32),
                "index": (row % 10)[:, None],
                "words": np.stack([row % 70_000, row * 0, row % 3], axis=1),
                "image": np.broadcast_to(row.astype(np.float32)[:, None, None], (len(row), 2, 2)),
            }
        )


def made(length: int, cache: Path | None = None, **source: Any) -> Examples:
    return Examples(Numbered(length, **source), Twice(), TARGETS, cache)


def numbers(batches: Any) -> list[int]:
    found: list[int] = []
    for batch in batches:
        rows = batch["dense"][:, 0].astype(np.int64)
        np.testing.assert_array_equal(batch["dense"][:, 1], 2 * rows)
        np.testing.assert_array_equal(batch["index"][:, 0], rows % 10)
        np.testing.assert_array_equal(batch["words"][:, 2], rows % 3)
        np.testing.assert_array_equal(batch["image"][:, 1, 1], rows)
        np.testing.assert_array_equal(batch["late"], rows % 2)
        np.testing.assert_array_equal(batch["delay"], rows / 4)
        found += rows.tolist()
    return found
