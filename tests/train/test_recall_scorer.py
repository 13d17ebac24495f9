"""What a recall method implements: a scorer, its nodes' further tensors, and its parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivetrain.core.batch import Batch
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Run
from drivetrain.train.recall.graph import Asked, Scorer, Serving
from drivetrain.train.recall.interactions import Interactions
from drivetrain.train.recall.method import Recall
from drivetrain.train.recall.nodes import Nodes

WEIGHTS = np.random.default_rng(0).standard_normal((3, 9)).astype(np.float32)
"""Of three numbers to nine items, by their place in the catalogue."""


@dataclass(frozen=True, kw_only=True)
class Linear(Recall):
    """Scores by numbers of the row that is asked, and by a second column of the index."""

    part: int = 256

    def scorer(self, source: Any, found: Interactions, run: Run, served: Serving) -> Scorer:
        nothing = np.zeros((3, served.spare(found)), np.float32)
        weights = np.concatenate([WEIGHTS, nothing], axis=1)

        def score(n: Nodes, asked: Asked) -> str:
            second = n.op("Gather", asked.rows["index"], n.ints(1), axis=1)
            sign = n.op("Cast", second, to=1)
            return n.op("Mul", sign, n.op("MatMul", asked.rows["dense"], n.held(weights)))

        return Scorer(score=score, part=self.part, rows=tuple(source.features.tensors))


class Rows:
    """Nine items, had by one user, in an order that is also that of how often."""

    features = FeatureSchema(
        (
            FeatureField(name="user", kind="index", cardinality=4),
            FeatureField(name="sign", kind="index", cardinality=4),
            FeatureField(name="numbers", kind="dense", width=3),
        )
    )
    targets = Schema(())
    item = np.repeat(np.arange(9), np.arange(9, 0, -1))

    @property
    def events(self) -> "Rows":
        return self

    def rows(self, split: Any) -> int:
        return len(self.item)

    def batches(self, split: Any, *args: Any, **kwargs: Any) -> Iterator[Batch]:
        index = np.zeros((len(self.item), 2), np.int64)
        yield Batch({"index": index, "item": self.item})


@pytest.mark.parametrize("part", [1, 4, 256])
@pytest.mark.parametrize("rows", [0, 1, 4, 11])
def test_a_method_reads_further_tensors_row_by_row(part: int, rows: int, tmp_path: Path) -> None:
    strategy = Linear(target="item", user="user", k=9, part=part)
    graph = strategy.fit(None, Rows(), Run(directory=tmp_path))
    assert graph.inputs.names == ("index", "dense")
    assert graph.inputs.field("dense") == Field("dense", "float32", (3,))
    random = np.random.default_rng(1)
    dense = random.standard_normal((rows, 3)).astype(np.float32)
    sign = random.integers(1, 3, rows)
    index = np.stack([np.zeros(rows, np.int64), sign], axis=1)
    found = graph.run(Batch({"index": index, "dense": dense}))
    due = sign[:, None] * (dense @ WEIGHTS)
    np.testing.assert_array_equal(found["items"], np.argsort(-due, axis=1, kind="stable"))
    np.testing.assert_allclose(found["scores"], -np.sort(-due, axis=1), rtol=1e-5)
