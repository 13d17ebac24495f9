"""Features of numbers: scaled, logarithmic, clipped, as they are, and whether they are there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from drivetrain.core.errors import wrong
from drivetrain.core.schema import FeatureField, Schema
from drivetrain.core.statistic import Moments, Quantiles, Statistic
from drivetrain.features.column import NUMBERS, TEXTS, OneColumn, Together, place
from drivetrain.features.numbers import as_float32, numbers, present

if TYPE_CHECKING:
    from drivetrain.core.measured import Fitted
    from drivetrain.core.sketch import MomentsValue, QuantileSketch
    from drivetrain.features.builder import Builder

TINY = 2.2250738585072014e-308
"""The least normal float64: what varies by less is taken for constant."""


@dataclass(frozen=True)
class Scale(Together, OneColumn):
    """``(x - mean) / std`` of the training rows; 0 for what is missing and for a constant column.

    The difference is taken in float64; float32 comes last, held to its finite range.
    """

    def statistics(self) -> Sequence[Statistic]:
        """The column's mean and standard deviation."""
        return (Moments(self.column),)

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """One dense column."""
        return _dense(self, schema)

    @classmethod
    def together(
        cls, graph: "Builder", features: Sequence["Scale"], schema: Schema, fitted: "Fitted"
    ) -> str:
        """Float32 ``[features, rows]``."""
        values, found = numbers(graph, [f.column for f in features])
        moments = [fitted[Moments(f.column)] for f in features]
        return _standardised(graph, values, found, moments)


@dataclass(frozen=True)
class Log(Together, OneColumn):
    """``sign(x) * log(1 + |x|)``, then as :class:`Scale` does; 0 for what is missing."""

    def statistics(self) -> Sequence[Statistic]:
        """The mean and the standard deviation of the logarithm."""
        return (Moments(self.column, of="signed_log"),)

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """One dense column."""
        return _dense(self, schema)

    @classmethod
    def together(
        cls, graph: "Builder", features: Sequence["Log"], schema: Schema, fitted: "Fitted"
    ) -> str:
        """Float32 ``[features, rows]``."""
        values, found = numbers(graph, [f.column for f in features])
        moments = [fitted[Moments(f.column, of="signed_log")] for f in features]
        logs = graph.op("Mul", graph.op("Sign", values), _log1p(graph, graph.op("Abs", values)))
        return _standardised(graph, logs, found, moments)


@dataclass(frozen=True)
class Clip(Together, OneColumn):
    """The number held between two bounds and scaled so that they become 0 and 1.

    What is missing takes the median of the training rows. A column whose bounds coincide gives
    0. Bounds beyond ±8.9e307 are taken for that, so that their difference is a number.

    Attributes:
        low: the lower bound; None for the 1 % quantile of the training rows.
        high: the upper bound; None for the 99 % quantile.
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("low", "high"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise wrong(f"{place(self)}: {name}", value, "a finite number or None")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise wrong(f"{place(self)}: low", self.low, f"at most high, which is {self.high}")

    def statistics(self) -> Sequence[Statistic]:
        """The column's quantiles."""
        return (Quantiles(self.column),)

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """One dense column."""
        return _dense(self, schema)

    def bounds(self, fitted: "Fitted") -> tuple[float, float, float]:
        """The lower bound, the upper bound and the median between them."""
        sketch = cast("QuantileSketch", fitted[Quantiles(self.column)])
        low, middle, high = (
            float(q) if math.isfinite(q) else 0.0 for q in sketch.quantile([0.01, 0.5, 0.99])
        )
        most = 8.9e307
        low = min(max(low if self.low is None else self.low, -most), most)
        high = min(max(high if self.high is None else self.high, low), most)
        return low, high, min(max(middle, low), high)

    @classmethod
    def together(
        cls, graph: "Builder", features: Sequence["Clip"], schema: Schema, fitted: "Fitted"
    ) -> str:
        """Float32 ``[features, rows]``, within [0, 1]."""
        values, found = numbers(graph, [f.column for f in features])
        bounds = [f.bounds(fitted) for f in features]
        low, high, middle = (_column(graph, [b[i] for b in bounds]) for i in range(3))
        factors = [1 / (b[1] - b[0]) if b[1] - b[0] >= TINY else 0.0 for b in bounds]
        filled = graph.op("Where", found, values, middle)
        held = graph.op("Min", graph.op("Max", filled, low), high)
        share = graph.op("Mul", graph.op("Sub", held, low), _column(graph, factors))
        return as_float32(graph, share)


@dataclass(frozen=True)
class Missing(Together, OneColumn):
    """1 where the column has no value, 0 where it has one.

    Numbers are missing when null, NaN or infinite; strings when empty; bytes when empty or
    beginning with a zero byte.
    """

    takes: ClassVar[tuple[str, ...]] = (*NUMBERS, *TEXTS)

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """One dense column."""
        return _dense(self, schema)

    @classmethod
    def together(
        cls, graph: "Builder", features: Sequence["Missing"], schema: Schema, fitted: "Fitted"
    ) -> str:
        """Float32 ``[features, rows]``."""
        parts = [present(graph, f.column) for f in features]
        return graph.cast(graph.op("Not", graph.stack(parts)), "float32")


@dataclass(frozen=True)
class Raw(Together, OneColumn):
    """Numbers as they are, as float32; 0 for what is missing.

    A column of numbers gives one dense column, a column of vectors ``[n]`` gives n, and arrays
    of higher rank give a tensor of their own. What float32 can't hold becomes its extreme.
    """

    instead: ClassVar[str] = "Index, Hash and Text take strings, Image takes encoded images"

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """Dense columns, or a tensor."""
        source = self.typed(schema)
        shape = tuple(n for n in source.shape if n is not None)
        if len(shape) != len(source.shape):
            raise wrong(f"{place(self)}: column {self.column!r}", source.shape, "a fixed shape")
        if len(shape) > 1:
            return FeatureField(name=self.name, kind="tensor", shape=shape, columns=self.columns)
        width = shape[0] if shape else 1
        return FeatureField(name=self.name, kind="dense", width=width, columns=self.columns)

    def nodes(self, graph: "Builder", schema: Schema, fitted: "Fitted") -> str:
        """Float32 ``[rows, width]`` or ``[rows, *shape]``."""
        if len(self.typed(schema).shape) <= 1:
            return super().nodes(graph, schema, fitted)
        return _or_zero(graph, [self])

    @classmethod
    def together(
        cls, graph: "Builder", features: Sequence["Raw"], schema: Schema, fitted: "Fitted"
    ) -> str:
        """Float32 ``[width of all features, rows]``."""
        return _or_zero(graph, features)


def _dense(feature: OneColumn, schema: Schema) -> FeatureField:
    feature.source(schema)
    return FeatureField(name=feature.name, kind="dense", columns=feature.columns)


def _column(graph: "Builder", values: Sequence[float]) -> str:
    """One float64 constant for each feature, ``[features, 1]``."""
    return graph.constant([[value] for value in values], "float64")


def _or_zero(graph: "Builder", features: Sequence[Raw]) -> str:
    """Columns as float32; those that are so already are never widened."""
    columns = [f.column for f in features]
    narrow = all(graph.schema.field(name).dtype == "float32" for name in columns)
    values, found = numbers(graph, columns, widen=not narrow)
    zero = graph.constant(0.0, "float32" if narrow else "float64")
    filled = graph.op("Where", found, values, zero)
    return filled if narrow else as_float32(graph, filled)


def _standardised(graph: "Builder", values: str, found: str, moments: Sequence[Any]) -> str:
    means, factors = zip(*(_mean_and_factor(m) for m in moments), strict=True)
    centred = graph.op("Sub", values, _column(graph, means))
    scaled = graph.op("Mul", centred, _column(graph, factors))
    filled = graph.op("Where", found, scaled, graph.constant(0.0, "float64"))
    return as_float32(graph, filled)


def _mean_and_factor(moments: "MomentsValue") -> tuple[float, float]:
    """What to subtract and what to multiply by; a constant column gives 0 whatever comes."""
    mean, std = moments.mean, moments.std
    if not (math.isfinite(mean) and math.isfinite(std) and std >= TINY):
        return 0.0, 0.0
    return mean, 1 / std


def _log1p(graph: "Builder", values: str) -> str:
    """``log(1 + x)`` for x >= 0, to the last bits also for tiny x (Kahan's correction).

    ReduceLogSum over an axis of one, because it takes the logarithm of one number at a time:
    Log takes four at once and the rest singly, with other last bits, so that what a row gives
    would depend on where in the batch it stands.
    """
    one = graph.constant(1.0, "float64")
    above = graph.op("Add", values, one)
    lost = graph.op("Sub", values, graph.op("Sub", above, one))
    last = graph.op("Unsqueeze", above, graph.ints(2))
    log = graph.op("ReduceLogSum", last, graph.ints(2), keepdims=0)
    return graph.op("Add", log, graph.op("Div", lost, above))
