"""The served graph: who asks to the items that are answered, with scores, reasons, propensities."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from drivetrain.apps.recommender.candidates import Recalled
from drivetrain.apps.recommender.ranker import chosen_of
from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.core.graph import Graph
from drivetrain.core.schema import FeatureSchema, Field, Schema
from drivetrain.train.recall.graph import Candidates
from drivetrain.train.recall.interactions import Interactions
from drivetrain.train.recall.nodes import Nodes
from drivetrain.train.rerank.listing import fields, listed
from drivetrain.train.rerank.steps import Rerank

POPULAR = "popular"
"""The reason of whatever is answered to those of whom nothing is known."""


@dataclass(frozen=True, eq=False)
class Answer:
    """All that the served graph is written from.

    Attributes:
        recalled: finds candidates.
        features: of the system.
        asked: those of them that the ranker sees.
        ranked: from the tensors of a list to scores; None where there is no ranker.
        k: how many items are answered.
        steps: of re-ranking.
        schema: of the raw columns.
        attributes: of the items, for filters.
        vectors: of the items ``[items, d]``, for diversity.
        limit: the raw column of how many items are wanted.
        method: the name of recall, where it is not several methods.
    """

    recalled: Recalled
    features: FeatureSchema
    asked: FeatureSchema
    ranked: Graph | None
    k: int
    steps: tuple[Rerank, ...]
    schema: Schema
    attributes: Mapping[str, Array]
    vectors: Array | None
    limit: str | None
    method: str

    def graph(self) -> Graph:
        """The features' tensors and raw columns to what is answered."""
        n = Nodes()
        best = self.recalled.best(n)
        scores = best.scores if self.ranked is None else self._ranked(n, best, self.ranked)
        chosen = listed(
            n,
            best.places,
            scores,
            k=self.k,
            wide=self.recalled.serving.k,
            steps=self.steps,
            schema=self.schema,
            attributes=self.attributes,
            vectors=self.vectors,
        )
        text = self.recalled.found.catalogue.dtype == object
        gone = n.op("IsNaN", chosen.propensities)
        if self.limit is not None:
            gone = n.op("Or", gone, self._beyond(n))
        nan = n.held(np.array(np.nan, np.float32))
        beyond = len(self.recalled.found.catalogue) + self.recalled.serving.room
        nothing = n.held(np.array(beyond, np.int64))
        places = n.op("Where", gone, nothing, chosen.places)
        outputs = [
            (Field("items", "string" if text else "int64", (self.k,)), best.items(places)),
            (Field("scores", "float32", (self.k,)), n.op("Where", gone, nan, chosen.scores)),
            (
                Field("reasons", "string", (self.k,)),
                self._reasons(n, best, chosen.candidates, gone),
            ),
            (
                Field("propensities", "float32", (self.k,)),
                n.op("Where", gone, nan, chosen.propensities),
            ),
        ]
        return n.build(self._inputs(), outputs)

    def _ranked(self, n: Nodes, best: Candidates, ranked: Graph) -> str:
        """The ranker's scores, minus infinity where there is no candidate."""
        told = self.recalled.told(n, best)
        for name, columns in chosen_of(self.features, self.asked).items():
            told[name] = name if columns is None else n.op("Gather", name, n.ints(*columns), axis=1)
        (scores,) = n.placed(ranked, {name: told[name] for name in ranked.inputs.names}).values()
        lowest = n.held(np.array(-np.inf, np.float32))
        return n.op("Where", n.op("IsInf", best.scores), lowest, scores)

    def _beyond(self, n: Nodes) -> str:
        """Whether a place lies behind the last one that is wanted, bool ``[rows, k]``."""
        assert self.limit is not None
        field = self.schema.field(self.limit, "Recommender.limit")
        if field.dtype != "int64" or field.shape:
            raise wrong(f"Recommender.limit, column {field.name!r}", field.dtype, "int64")
        whole, zero = n.held(np.array(self.k, np.int64)), n.held(np.array(0, np.int64))
        wanted = n.op("Where", n.op("Less", self.limit, zero), whole, self.limit)
        return n.op(
            "GreaterOrEqual", n.held(np.arange(self.k)[None]), n.op("Unsqueeze", wanted, n.ints(1))
        )

    def _reasons(self, n: Nodes, best: Candidates, chosen: str, gone: str) -> str:
        """What speaks for each item, string ``[rows, k]``.

        Args:
            n: takes the nodes.
            best: the candidates.
            chosen: int64 ``[rows, k]``: which of them were.
            gone: bool ``[rows, k]``: where there is no item.
        """
        several = self.recalled.scorer.several
        reasons = (self.method,) if several is None else several.names
        names = n.held(np.array([*reasons, POPULAR, ""], object))
        method, popular, nothing = (
            n.held(np.array(place, np.int64)) for place in (0, len(reasons), len(reasons) + 1)
        )
        if several is not None:
            weighed = n.op("Mul", best.parts, n.held(np.array(several.weights, np.float32)))
            method = n.op("ArgMax", weighed, axis=2, keepdims=0)
            method = n.op("GatherElements", method, chosen, axis=1)
        method = n.op("Where", best.unknown, popular, method)
        return n.op("Gather", names, n.op("Where", gone, nothing, method))

    def _inputs(self) -> list[Field]:
        found = {field.name: field for field in self.recalled.inputs}
        if self.ranked is not None:
            found |= {f.name: f for f in self.features.tensors if f.name in self.asked.tensors}
        found |= {field.name: field for field in fields(self.steps, self.schema)}
        if self.limit is not None:
            found[self.limit] = self.schema.field(self.limit)
        return [*found.values()]


def likeness(found: Interactions, width: int = 64, seed: int = 0) -> Array:
    """Vectors of items, float32 ``[items, width]``, whose cosines are those of who had them.

    Each user has a random vector and each item the sum of its users': cosines are kept but for
    about ``1 / sqrt(width)`` (Johnson and Lindenstrauss 1984). Users go through in parts.
    """
    had, random = found.had, np.random.default_rng(seed)
    vectors = np.zeros((had.wide, width), np.float32)
    for first, last in had.spans(1 << 16):
        drawn = random.standard_normal((last - first, width), np.float32)
        low, high = had.starts[first], had.starts[last]
        columns = had.columns[low:high]
        each = np.repeat(drawn, had.lengths[first:last], axis=0)
        order = np.argsort(columns, kind="stable")
        at = np.flatnonzero(np.diff(columns[order], prepend=-1))
        if len(at):
            vectors[columns[order][at]] += np.add.reduceat(each[order], at, axis=0)
    return vectors
