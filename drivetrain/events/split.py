"""How rows are divided into train, validate and test, the same in every engine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from drivetrain.core.errors import wrong
from drivetrain.core.schema import Schema
from drivetrain.core.seams import SPLITS
from drivetrain.events.expression import Call, Column, Expression, Value, col, lit, when

SPLIT = "__split__"
"""The column that carries a row's split within an engine: a position in ``core.seams.SPLITS``."""

DIGITS = 13
"""Hexadecimal digits of the hash that decide: 52 bits."""


@dataclass(frozen=True, kw_only=True)
class TimeSplit:
    """The past trains, what follows validates, the rest tests: never random.

    A row whose time is null belongs to no split: it is counted and reported, and read by no one.

    Attributes:
        validate: the first moment of validation; rows before it train.
        test: the first moment of testing.
        column: the timestamp column; None takes the one that the files declare (``time=``).
    """

    validate: str | date
    test: str | date
    column: str | None = None

    def __post_init__(self) -> None:
        for name in ("validate", "test"):
            moment(getattr(self, name), f"TimeSplit.{name}")
        if moment(self.validate) > moment(self.test):
            found = f"validate={self.validate} and test={self.test}"
            raise wrong("TimeSplit", found, "a test that does not begin before validation")

    def expression(self, schema: Schema, time: str | None) -> Expression:
        """The split of a row: 0, 1, 2 or null.

        Raises:
            ValueError: there is no such column, or it holds no timestamps.
        """
        name = self.column or time
        if name is None:
            allowed = "a column, or time= on the files that the table starts from"
            raise wrong("TimeSplit.column", None, allowed)
        field = schema.field(name, "TimeSplit")
        if field.dtype != "timestamp":
            allowed = "timestamps; with_columns(at=col(…).cast('timestamp')) makes them"
            raise wrong(f"column {name!r} in TimeSplit", field.dtype, allowed)
        at = col(name)
        return (
            when(at < moment(self.validate), 0)
            .when(at < moment(self.test), 1)
            .when(at >= moment(self.test), 2)
            .otherwise(None)
        )


@dataclass(frozen=True, kw_only=True)
class HashSplit:
    """Rows go where a hash of their columns says, so that equal keys stay together.

    The hash is the first 13 hexadecimal digits of the MD5 of the UTF-8 text ``seed,c1,c2,…``
    read as a fraction ``u`` of ``[0, 1)``: below ``test`` the row tests, below ``test + validate``
    it validates, else it trains. Columns enter in the order given, as text:

    - a string as ``length:text``, length in code points, a missing one as ``0:``;
    - an integer in decimal, a timestamp as microseconds since 1970-01-01, bytes in lower-case
      hexadecimal, each ``n`` where missing;
    - a float as ``floor(x).floor((x - floor(x)) * 2**32)``, the first part within ±4e18, and
      ``n`` where missing or infinite.

    Attributes:
        columns: what is hashed; None takes every column of single values, which keeps equal rows
            together but needs them all read. A key (a user, a session) is better.
        validate: the share of keys that validate.
        test: the share of keys that test.
        seed: another seed divides anew.
    """

    columns: Sequence[str] | None = None
    validate: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.columns, str):
            raise wrong("HashSplit.columns", self.columns, f"names, such as ({self.columns!r},)")
        if self.columns is not None:
            object.__setattr__(self, "columns", tuple(self.columns))
        for name in ("validate", "test"):
            share = getattr(self, name)
            if not (math.isfinite(share) and 0 <= share < 1):
                raise wrong(f"HashSplit.{name}", share, "a share of at least 0 and below 1")
        if self.validate + self.test >= 1:
            found = f"validate={self.validate} and test={self.test}"
            raise wrong("HashSplit", found, "shares that leave rows for training")

    def expression(self, schema: Schema, time: str | None) -> Expression:
        """The split of a row: 0, 1 or 2.

        Raises:
            ValueError: there is no such column, or no column to hash.
        """
        names = self.columns
        if names is None:
            names = [field.name for field in schema if not field.shape]
        if not names:
            raise wrong("HashSplit.columns", names, "at least one column of single values")
        for name in names:
            schema.field(name, "HashSplit")
        hashed = Call("hash", tuple(map(Column, names)), (str(self.seed),))
        return (
            when(hashed < _threshold(self.test), 2)
            .when(hashed < _threshold(self.test + self.validate), 1)
            .otherwise(0)
        )


@dataclass(frozen=True)
class ColumnSplit:
    """Rows go where a column says: the way for a split that hangs on other rows.

    Such as one for each user at random or their last row, which
    :mod:`drivetrain.events.divided` finds, or a benchmark's own. A row that says anything but
    ``train``, ``validate`` or ``test`` belongs to no split: it is counted and reported, and read by
    no one.

    Attributes:
        column: the column of text.
    """

    column: str

    def expression(self, schema: Schema, time: str | None) -> Expression:
        """The split of a row: 0, 1, 2 or null.

        Raises:
            ValueError: there is no such column, or it holds no text.
        """
        field = schema.field(self.column, "ColumnSplit")
        if field.dtype != "string":
            allowed = f"text: {', '.join(SPLITS)}"
            raise wrong(f"column {self.column!r} in ColumnSplit", field.dtype, allowed)
        part = col(self.column)
        train, validate, test = SPLITS
        return (
            when(part == train, 0).when(part == validate, 1).when(part == test, 2).otherwise(None)
        )


Division = TimeSplit | HashSplit | ColumnSplit
"""How rows are divided."""


def _threshold(share: float) -> Value:
    """The hash below which that share of all keys lies; text of one length sorts as numbers do."""
    return f"{min(round(share * 16**DIGITS), 16**DIGITS - 1):0{DIGITS}x}"


def moment(value: str | date, where: str = "TimeSplit") -> datetime:
    """A moment as a naive UTC datetime.

    Raises:
        ValueError: no ISO 8601 text and no date.
    """
    try:
        parsed = datetime.fromisoformat(value) if isinstance(value, str) else value
        found = lit(parsed).value
    except ValueError:
        found = None
    if not isinstance(found, datetime):
        raise wrong(where, value, "a date or a time as ISO 8601 writes it, such as '2013-10-01'")
    return found
