"""Features of what comes round again: the hour, the weekday, the season, an angle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import MISSING_INT, FeatureField, Schema
from drivetrain.features.column import OneColumn, Together, place
from drivetrain.features.numbers import numbers

if TYPE_CHECKING:
    from drivetrain.core.measured import Fitted
    from drivetrain.features.builder import Builder

SECOND = 1_000_000
DAY = 86_400 * SECOND
PERIODS: Mapping[str, tuple[int, int]] = {
    "hour": (DAY, 0),
    "weekday": (7 * DAY, 4 * DAY),
    "day_of_year": (31_556_952 * SECOND, 0),
}
"""Length and start of each named period in microseconds: the day; the week, from Monday
1970-01-05; the mean Gregorian year of 365.2425 days, at most two days off the calendar's."""

_SINE = (
    6.2831853070103865,
    -16.20896094520439,
    16.769400962012423,
    -9.628135987493966,
    3.544555744699781,
    -0.9046753017969674,
    0.15236637795428784,
)
"""sin(2πu) = u (1 - 4u²) Σ c_i u^(2i) for |u| <= 1/2, interpolated at Chebyshev's nodes; the error
is at most 3.3e-11."""


@dataclass(frozen=True)
class Cyclic(Together, OneColumn):
    """Sine and cosine of where a moment, or a number, stands in a period; 0, 0 for missing.

    Attributes:
        period: for timestamps ``hour`` (one turn a day, minutes and seconds counted),
            ``weekday`` (one turn a week), ``day_of_year`` (one turn a mean Gregorian year) or
            seconds; for other numbers a number in the column's own unit, such as 24.0 for a
            column of hours.
    """

    period: str | float = "hour"

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"{place(self)}: period"
        if isinstance(self.period, str):
            if self.period not in PERIODS:
                raise unknown("period", self.period, PERIODS, place(self))
        elif not 1e-6 <= self.period <= 1e12:
            raise wrong(where, self.period, "a name, or a number from 1e-6 to 1e12")

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """Two dense columns."""
        source = self.source(schema)
        if source.dtype != "timestamp" and isinstance(self.period, str):
            raise wrong(
                f"{place(self)}: column {self.column!r}",
                source.dtype,
                f"timestamp with period={self.period!r}; other numbers take a number, such as "
                "period=24.0",
            )
        return FeatureField(name=self.name, kind="dense", width=2, columns=self.columns)

    @property
    def microseconds(self) -> tuple[int, int]:
        """The period's length and start."""
        if isinstance(self.period, str):
            return PERIODS[self.period]
        return max(round(self.period * SECOND), 1), 0

    @classmethod
    def together(
        cls, graph: "Builder", features: Sequence["Cyclic"], schema: Schema, fitted: "Fitted"
    ) -> str:
        """Float32 ``[2 × features, rows]``: for each its sine, then its cosine.

        Each column enters twice, the second time a quarter turn ahead: one polynomial gives both.
        """
        moments = [f for f in features if schema.field(f.column).dtype == "timestamp"]
        others = [f for f in features if schema.field(f.column).dtype != "timestamp"]
        assert [*others, *moments] == list(features), "columns of one type are neighbours"
        parts = [_of_numbers(graph, others)] if others else []
        parts += [_of_moments(graph, moments)] if moments else []
        turns = graph.concat([part[0] for part in parts])
        found = graph.concat([part[1] for part in parts])
        sine = _sine(graph, turns)
        filled = graph.op("Where", found, sine, graph.constant(0.0, "float64"))
        return graph.cast(filled, "float32")


def _of_moments(graph: "Builder", features: Sequence[Cyclic]) -> tuple[str, str]:
    """Turns float64 ``[2 × features, rows]`` and which are there, of timestamps."""
    column = graph.stack([graph.column(f.column) for f in features for _ in range(2)])
    lengths = [[f.microseconds[0]] for f in features for _ in range(2)]
    ahead = [
        [quarter - f.microseconds[1] / f.microseconds[0]] for f in features for quarter in (0, 0.25)
    ]
    rest = graph.cast(graph.op("Mod", column, graph.constant(lengths, "int64")), "float64")
    turns = graph.op("Div", rest, graph.constant(lengths, "float64"))
    missing = graph.op("Equal", column, graph.constant(MISSING_INT, "int64"))
    turned = graph.op("Add", turns, graph.constant(ahead, "float64"))
    return turned, graph.op("Not", missing)


def _of_numbers(graph: "Builder", features: Sequence[Cyclic]) -> tuple[str, str]:
    """Turns float64 ``[2 × features, rows]`` and which are there, of other numbers."""
    column, found = numbers(graph, [f.column for f in features for _ in range(2)])
    lengths = graph.constant([[f.period] for f in features for _ in range(2)], "float64")
    turns = graph.op("Div", graph.op("Mod", column, lengths, fmod=1), lengths)
    ahead = graph.constant([[0.0], [0.25]] * len(features), "float64")
    return graph.op("Add", turns, ahead), found


def _sine(graph: "Builder", turns: str) -> str:
    """sin(2π turns), to 3.3e-11.

    A polynomial, because it rounds each step as IEEE 754 says wherever a number stands: Sin
    takes four numbers at once and the rest singly, with other last bits, so that what a row
    gives would depend on where in the batch it stands.
    """
    near = graph.op("Sub", turns, graph.op("Round", turns))
    square = graph.op("Mul", near, near)
    total = graph.constant(_SINE[-1], "float64")
    for coefficient in reversed(_SINE[:-1]):
        step = graph.op("Mul", total, square)
        total = graph.op("Add", step, graph.constant(coefficient, "float64"))
    four = graph.op("Mul", square, graph.constant(4.0, "float64"))
    ends = graph.op("Mul", near, graph.op("Sub", graph.constant(1.0, "float64"), four))
    return graph.op("Mul", ends, total)
