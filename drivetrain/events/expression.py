"""Expressions over columns: a closed language that every engine renders the same.

An expression is a value: it says what is computed and holds no data. ``col``, ``lit``, ``when``,
``coalesce``, ``concat`` and ``make_timestamp`` start one; operators and methods build on it.

What holds in every engine:

- A NaN is a null from the moment that it is read or computed; infinities stay numbers.
- Null is unknown: it passes through arithmetic, comparisons and text; ``&`` and ``|`` know that
  ``False & null`` is false and ``True | null`` is true; a row whose condition is null is dropped.
- ``/`` gives a float64, ``//`` rounds down and ``%`` has the sign of the divisor, as in Python;
  dividing by zero gives null.
- Where a condition is due, an integer column of 0 and 1 is one.
- Timestamps have no zone; a string beside a timestamp is read as ISO 8601.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, TypeAlias, get_args
from typing import Literal as Choice

from drivetrain.core.errors import unknown, wrong

Castable = Choice["int64", "float64", "string", "timestamp"]
Unit = Choice["second", "minute", "hour", "day", "week", "month", "year"]
Value: TypeAlias = "Expression | bool | int | float | str | bytes | date | timedelta | None"
"""What may stand beside an expression: another one, or a plain value."""

INFIX = {
    "add": "+",
    "subtract": "-",
    "multiply": "*",
    "divide": "/",
    "floor_divide": "//",
    "modulo": "%",
    "equal": "==",
    "not_equal": "!=",
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
    "and": "&",
    "or": "|",
}


@dataclass(frozen=True, eq=False, repr=False)
class Expression:
    """A computation over the columns of one row.

    ``==`` builds a comparison, so two expressions are the same value when their descriptions
    (``core.describe``) are; in sets and dictionaries each is itself.
    """

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise ValueError(
            f"found {self!r} where Python wants true or false, which no one knows before the rows "
            "are read. Allowed: & for and, | for or, ~ for not (with brackets around each "
            "comparison), .between(a, b) for a < x < b, .isin([…]) for in, when() for if."
        )

    # -- arithmetic ----------------------------------------------------------------------------

    def __add__(self, other: Value) -> "Expression":
        return _call("add", self, other)

    def __radd__(self, other: Value) -> "Expression":
        return _call("add", other, self)

    def __sub__(self, other: Value) -> "Expression":
        return _call("subtract", self, other)

    def __rsub__(self, other: Value) -> "Expression":
        return _call("subtract", other, self)

    def __mul__(self, other: Value) -> "Expression":
        return _call("multiply", self, other)

    def __rmul__(self, other: Value) -> "Expression":
        return _call("multiply", other, self)

    def __truediv__(self, other: Value) -> "Expression":
        return _call("divide", self, other)

    def __rtruediv__(self, other: Value) -> "Expression":
        return _call("divide", other, self)

    def __floordiv__(self, other: Value) -> "Expression":
        return _call("floor_divide", self, other)

    def __rfloordiv__(self, other: Value) -> "Expression":
        return _call("floor_divide", other, self)

    def __mod__(self, other: Value) -> "Expression":
        return _call("modulo", self, other)

    def __rmod__(self, other: Value) -> "Expression":
        return _call("modulo", other, self)

    def __neg__(self) -> "Expression":
        return _call("negate", self)

    def abs(self) -> "Expression":
        """The distance from zero."""
        return _call("abs", self)

    def __abs__(self) -> "Expression":
        return self.abs()

    def round(self) -> "Expression":
        """The nearest whole number, halves away from zero; of the type that it was."""
        return _call("round", self)

    def clip(self, low: Value = None, high: Value = None) -> "Expression":
        """``low`` where less, ``high`` where greater; None leaves that side open."""
        result = self
        if low is not None:
            result = _call("clip_low", result, low)
        return result if high is None else _call("clip_high", result, high)

    # -- comparisons and conditions ------------------------------------------------------------

    def __eq__(self, other: Value) -> "Expression":  # pyright: ignore[reportIncompatibleMethodOverride]
        return _call("equal", self, other)

    def __ne__(self, other: Value) -> "Expression":  # pyright: ignore[reportIncompatibleMethodOverride]
        return _call("not_equal", self, other)

    def __lt__(self, other: Value) -> "Expression":
        return _call("less", self, other)

    def __le__(self, other: Value) -> "Expression":
        return _call("less_equal", self, other)

    def __gt__(self, other: Value) -> "Expression":
        return _call("greater", self, other)

    def __ge__(self, other: Value) -> "Expression":
        return _call("greater_equal", self, other)

    def __and__(self, other: Value) -> "Expression":
        return _call("and", self, other)

    def __rand__(self, other: Value) -> "Expression":
        return _call("and", other, self)

    def __or__(self, other: Value) -> "Expression":
        return _call("or", self, other)

    def __ror__(self, other: Value) -> "Expression":
        return _call("or", other, self)

    def __invert__(self) -> "Expression":
        return _call("not", self)

    def between(self, low: Value, high: Value) -> "Expression":
        """Whether ``low <= x <= high``, both ends included."""
        return (self >= low) & (self <= high)

    def isin(self, values: Iterable[Value]) -> "Expression":
        """Whether the value is one of ``values``; null where it is null."""
        return _call("isin", self, *values)

    # -- nulls ---------------------------------------------------------------------------------

    def is_null(self) -> "Expression":
        """Whether the value is missing: null or NaN."""
        return _call("is_null", self)

    def is_not_null(self) -> "Expression":
        """Whether the value is there."""
        return _call("is_not_null", self)

    def is_finite(self) -> "Expression":
        """Whether a number is there and is not infinite; never null."""
        return _call("is_finite", self)

    def fill_null(self, value: Value) -> "Expression":
        """``value`` where this is missing."""
        return coalesce(self, value)

    # -- types and text ------------------------------------------------------------------------

    def cast(self, to: Castable, *, strict: bool = True) -> "Expression":
        """The value as another type; a float becomes an integer by dropping the fraction.

        Args:
            to: the type; ``timestamp`` reads ISO 8601 strings, or integers as microseconds.
            strict: a value that cannot be converted is an error when the rows are read; False
                makes it null.
        """
        if to not in get_args(Castable):
            raise unknown("type", str(to), get_args(Castable), f"cast of {self!r}")
        return Call("cast" if strict else "try_cast", (self,), (to,))

    def lower(self) -> "Expression":
        """Text in lower case."""
        return _call("lower", self)

    def upper(self) -> "Expression":
        """Text in upper case."""
        return _call("upper", self)

    def trim(self) -> "Expression":
        """Text without the spaces around it."""
        return _call("trim", self)

    def length(self) -> "Expression":
        """How many characters (Unicode code points) a text has."""
        return _call("length", self)

    # -- timestamps ----------------------------------------------------------------------------

    def truncate(self, unit: Unit) -> "Expression":
        """The start of the second, minute, hour, day, week (Monday), month or year."""
        if unit not in get_args(Unit):
            raise unknown("unit", str(unit), get_args(Unit), f"truncate of {self!r}")
        return Call("truncate", (self,), (unit,))

    def year(self) -> "Expression":
        """The year of a timestamp."""
        return _call("year", self)

    def month(self) -> "Expression":
        """The month, 1 to 12."""
        return _call("month", self)

    def day(self) -> "Expression":
        """The day of the month, 1 to 31."""
        return _call("day", self)

    def hour(self) -> "Expression":
        """The hour, 0 to 23."""
        return _call("hour", self)

    def minute(self) -> "Expression":
        """The minute, 0 to 59."""
        return _call("minute", self)

    def weekday(self) -> "Expression":
        """The day of the week, Monday 0 to Sunday 6, as Python counts."""
        return _call("weekday", self)

    def day_of_year(self) -> "Expression":
        """The day of the year, 1 to 366."""
        return _call("day_of_year", self)

    def epoch_us(self) -> "Expression":
        """Microseconds since 1970-01-01, an int64."""
        return _call("epoch_us", self)


@dataclass(frozen=True, eq=False, repr=False)
class Column(Expression):
    """The value of a column."""

    name: str

    def __repr__(self) -> str:
        return f"col({self.name!r})"


@dataclass(frozen=True, eq=False, repr=False)
class Literal(Expression):
    """A constant; a timestamp is a naive ``datetime``."""

    value: bool | int | float | str | bytes | datetime | None

    def __repr__(self) -> str:
        return repr(str(self.value)) if isinstance(self.value, datetime) else repr(self.value)


@dataclass(frozen=True, eq=False, repr=False)
class Duration(Expression):
    """A length of time, to shift a timestamp by."""

    microseconds: int

    def __repr__(self) -> str:
        return f"seconds({self.microseconds / 1e6:g})"


@dataclass(frozen=True, eq=False, repr=False)
class Call(Expression):
    """An operator of ``events.operators.OPERATORS`` applied to expressions."""

    operator: str
    arguments: tuple[Expression, ...]
    options: tuple[str, ...] = ()

    def __repr__(self) -> str:
        inner = [repr(argument) for argument in self.arguments]
        if self.operator in INFIX:
            sides = [
                f"({s})" if infix(a) else s for s, a in zip(inner, self.arguments, strict=True)
            ]
            return f" {INFIX[self.operator]} ".join(sides)
        if self.operator == "not":
            return f"~({inner[0]})"
        if self.operator == "negate":
            return f"-({inner[0]})"
        if self.operator in FUNCTIONS:
            return f"{self.operator}({', '.join(inner)})"
        head = f"({inner[0]})" if infix(self.arguments[0]) else inner[0]
        return f"{head}.{self.operator}({', '.join([*inner[1:], *map(repr, self.options)])})"


FUNCTIONS = ("case", "coalesce", "concat", "make_timestamp", "hash")


def infix(expression: Expression) -> bool:
    """Whether the expression is written with an operator between its sides."""
    return isinstance(expression, Call) and expression.operator in INFIX


def _call(operator: str, *arguments: Value) -> Call:
    return Call(operator, tuple(lift(argument) for argument in arguments))


def lift(value: Value) -> Expression:
    """``value`` as an expression.

    Raises:
        ValueError: no expression can hold it.
    """
    if isinstance(value, Expression):
        return value
    if isinstance(value, timedelta):
        return Duration((value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds)
    return lit(value)


def col(name: str) -> Column:
    """The column called ``name``.

    Raises:
        ValueError: it is no name; ``rename`` gives one to a column without.
    """
    if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise wrong("col", name, "the name of a column")
    return Column(name)


def lit(value: Any) -> Literal:
    """A constant; a date is its midnight, an aware time is turned to UTC.

    Raises:
        ValueError: the value is of a type that columns don't have, or past an int64.
    """
    if hasattr(value, "item") and not isinstance(value, bytes | str):
        value = value.item()  # a numpy scalar
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC).replace(tzinfo=None)
    if value is not None and not isinstance(value, bool | int | float | str | bytes | datetime):
        allowed = "None, a bool, number, string, bytes, date or datetime, or an expression"
        raise wrong("a value in an expression", value, allowed)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise wrong("a value in an expression", value, "an integer of 64 bits")
    if isinstance(value, str):
        if "\0" in value:
            raise wrong("a value in an expression", value, "text without NUL characters")
        value.encode()  # a lone surrogate is no text; UnicodeEncodeError is a ValueError
    return Literal(value)


Length: TypeAlias = float | Expression
"""How many: a number, or an integer column or expression."""


def seconds(n: Length) -> "timedelta | Expression":
    """``n`` seconds, to add to a timestamp or take from it."""
    return _length(timedelta(seconds=1), n)


def minutes(n: Length) -> "timedelta | Expression":
    """``n`` minutes."""
    return _length(timedelta(minutes=1), n)


def hours(n: Length) -> "timedelta | Expression":
    """``n`` hours."""
    return _length(timedelta(hours=1), n)


def days(n: Length) -> "timedelta | Expression":
    """``n`` days of 24 hours."""
    return _length(timedelta(days=1), n)


def _length(unit: timedelta, n: Length) -> "timedelta | Expression":
    return lift(unit) * n if isinstance(n, Expression) else unit * n


@dataclass(frozen=True, eq=False, repr=False)
class Case:
    """Conditions tried in turn; :meth:`otherwise` makes an expression of them."""

    branches: tuple[Expression, ...]

    def when(self, condition: Value, then: Value) -> "Case":
        """One more condition, tried where none before it held."""
        return Case((*self.branches, lift(condition), lift(then)))

    def otherwise(self, value: Value) -> Expression:
        """The value where no condition holds."""
        return Call("case", (*self.branches, lift(value)))


def when(condition: Value, then: Value) -> Case:
    """``then`` where ``condition`` holds: ``when(c, x).when(d, y).otherwise(z)``."""
    return Case(()).when(condition, then)


def coalesce(*values: Value) -> Expression:
    """The first value that is not missing."""
    if not values:
        raise wrong("coalesce", (), "at least one value")
    return _call("coalesce", *values)


def concat(*values: Value) -> Expression:
    """Texts one after another; null where any is null."""
    if not values:
        raise wrong("concat", (), "at least one value")
    return _call("concat", *values)


def make_timestamp(
    year: Value, month: Value, day: Value, hour: Value = 0, minute: Value = 0
) -> Expression:
    """The timestamp with these parts; null where any is null.

    A part that no calendar has is an error when the rows are read.
    """
    return _call("make_timestamp", year, month, day, hour, minute)
