"""Features that turn a column into positions: of a vocabulary, of given numbers, of quantiles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from drivetrain.core.errors import wrong
from drivetrain.core.schema import MISSING_INT, FeatureField, Schema
from drivetrain.core.statistic import Quantiles, Statistic, TopK
from drivetrain.features.column import OneColumn, Together, place, positive
from drivetrain.features.numbers import numbers

if TYPE_CHECKING:
    from drivetrain.core.measured import Fitted
    from drivetrain.core.sketch import Counts, QuantileSketch
    from drivetrain.features.builder import Builder


@dataclass(frozen=True)
class Index(Together, OneColumn):
    """The position of a string or an integer in the vocabulary of the training rows.

    0 is missing, 1 unknown or rare, and from 2 on come the values, the commonest first and
    equals in their own order.

    Attributes:
        size: the most values that get a position of their own; None for all that were counted.
        min_count: a value that occurs less often is rare.
    """

    size: int | None = None
    min_count: int = 1

    takes: ClassVar[tuple[str, ...]] = ("string", "int64")
    instead: ClassVar[str] = "Bucket and Scale take other numbers, Hash takes bytes"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None:
            positive(f"{place(self)}: size", self.size)
        positive(f"{place(self)}: min_count", self.min_count)

    def statistics(self) -> Sequence[Statistic]:
        """How often each value occurs."""
        return (self._counted,)

    @property
    def _counted(self) -> TopK:
        return TopK(self.column, max(TopK.capacity, self.size or 0))

    def vocabulary(self, fitted: "Fitted") -> list[str | int]:
        """The values that have a position of their own, the commonest first."""
        counts = cast("Counts", fitted[self._counted])
        known = [value for value, count in counts.values if count >= self.min_count]
        return known[: self.size]

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """One index column."""
        self.source(schema)
        return _index(self, len(self.vocabulary(fitted)) + 2)

    @classmethod
    def together(
        cls, graph: "Builder", features: Sequence["Index"], schema: Schema, fitted: "Fitted"
    ) -> str:
        """Int64 ``[features, rows]``."""
        return graph.stack([f.positions(graph, f.column, schema, fitted) for f in features])

    def positions(self, graph: "Builder", column: str, schema: Schema, fitted: "Fitted") -> str:
        """Int64, of the shape of a column that holds such values, this one or another."""
        text = schema.field(column).dtype == "string"
        vocabulary = self.vocabulary(fitted)
        keys = {"keys_strings" if text else "keys_int64s": ["" if text else MISSING_INT]}
        for name in keys:
            keys[name] += vocabulary
        return graph.op(
            "LabelEncoder",
            graph.column(column),
            domain="ai.onnx.ml",
            **keys,
            values_int64s=[0, *range(2, len(vocabulary) + 2)],
            default_int64=1,
        )


@dataclass(frozen=True)
class Id(Together, OneColumn):
    """Integers that are positions already: x becomes x + 1; 0 is missing or not in [0, size).

    A column of vectors ``[n]`` gives n index columns.

    Attributes:
        size: how many ids there are; the cardinality is one more.
    """

    size: int

    takes: ClassVar[tuple[str, ...]] = ("int64",)
    instead: ClassVar[str] = "Index and Hash take strings"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(f"{place(self)}: size", self.size)

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """As many index columns as the column is wide."""
        shape = self.typed(schema).shape
        width = shape[0] if len(shape) == 1 else 1
        if len(shape) > 1 or width is None:
            raise wrong(f"{place(self)}: column {self.column!r}", shape, "one id or n of them")
        return _index(self, self.size + 1, width)

    @classmethod
    def together(
        cls, graph: "Builder", features: Sequence["Id"], schema: Schema, fitted: "Fitted"
    ) -> str:
        """Int64 ``[width of all features, rows]``."""
        fields = [f.field(schema, fitted) for f in features]
        names = [graph.column(f.column) for f in features]
        if all(not schema.field(name).shape for name in names):
            ids = graph.stack(names)
        else:
            ids = graph.concat(
                [graph.transpose(n) if schema.field(n).shape else graph.stack([n]) for n in names]
            )
        sizes = [
            [f.size] for f, field in zip(features, fields, strict=True) for _ in range(field.width)
        ]
        above = graph.op("GreaterOrEqual", ids, graph.constant(0, "int64"))
        below = graph.op("Less", ids, graph.constant(sizes, "int64"))
        next_one = graph.op("Add", ids, graph.constant(1, "int64"))
        known = graph.op("And", above, below)
        return graph.op("Where", known, next_one, graph.constant(0, "int64"))


@dataclass(frozen=True)
class Bucket(Together, OneColumn):
    """The interval that a number falls in: 0 is missing, 1 below the first edge, and so on.

    A number that equals an edge lies above it. Without given edges they are quantiles of the
    training rows, each once, so that ties may leave fewer intervals than ``bins``.

    Attributes:
        bins: how many intervals of about as many training rows each.
        edges: ascending edges to use instead; ``bins`` then counts for nothing.
    """

    bins: int = 32
    edges: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(f"{place(self)}: bins", self.bins, least=2)
        if self.edges is None:
            return
        finite = all(math.isfinite(edge) for edge in self.edges)
        if not finite or not self.edges or list(self.edges) != sorted(set(self.edges)):
            raise wrong(f"{place(self)}: edges", self.edges, "ascending finite numbers")

    def statistics(self) -> Sequence[Statistic]:
        """The column's quantiles, unless the edges are given."""
        return () if self.edges is not None else (Quantiles(self.column),)

    def inner_edges(self, fitted: "Fitted") -> list[float]:
        """The edges between intervals, ascending; none for a column of one value or no value.

        A quantile is moved down to the edge of the sketch's bucket that it lies in, or a value
        that fills several quantiles would get an edge for each, within its own bucket.
        """
        if self.edges is not None:
            return list(self.edges)
        sketch = cast("QuantileSketch", fitted[Quantiles(self.column)])
        if not sketch.count:
            return []
        lower = sketch.edges()[0].tolist()
        ends = sketch.counts.cumsum()
        ranks = [i * sketch.count / self.bins for i in range(1, self.bins)]
        found = {lower[at] for at in ends.searchsorted(ranks, side="right").tolist()}
        return sorted(edge for edge in found if edge > sketch.minimum)

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """One index column."""
        self.source(schema)
        return _index(self, len(self.inner_edges(fitted)) + 2)

    @classmethod
    def together(
        cls, graph: "Builder", features: Sequence["Bucket"], schema: Schema, fitted: "Fitted"
    ) -> str:
        """Int64 ``[features, rows]``.

        Every edge is compared with every number: for dozens of edges that is faster than a
        search whose steps are a node each.
        """
        values, found = numbers(graph, [f.column for f in features])
        edges = [f.inner_edges(fitted) for f in features]
        most = max(1, *(len(e) for e in edges))
        table = [[[x] for x in e + [math.inf] * (most - len(e))] for e in edges]
        reached = graph.op(
            "GreaterOrEqual",
            graph.op("Unsqueeze", values, graph.ints(1)),
            graph.constant(table, "float64"),
        )
        count = graph.op("ReduceSum", graph.cast(reached, "float32"), graph.ints(1), keepdims=0)
        place_ = graph.op("Add", graph.cast(count, "int64"), graph.constant(1, "int64"))
        return graph.op("Where", found, place_, graph.constant(0, "int64"))


def _index(feature: OneColumn, cardinality: int, width: int = 1) -> FeatureField:
    return FeatureField(
        name=feature.name,
        kind="index",
        width=width,
        cardinality=cardinality,
        columns=feature.columns,
    )
