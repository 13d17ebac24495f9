"""Windows: columns of a row that earlier rows with the same key give it, as a declaration.

A row is asked at its *time*, and an observation counts from the moment at which it was *known*. A
window at time ``t`` holds what was known before ``t`` and not longer ago than ``over``: known times
in ``[t - over, t)``. What becomes known at ``t`` itself is not in it, so a row never sees itself
nor anything of its own moment. Nothing else decides: neither the order in which rows of one moment
come nor when somebody looked before. So a table that is filled in afterwards and a state that is
kept while events arrive give the same bits.

Of values that became known at one moment the greater counts as the later one: for ``last``,
``recent`` and the last ``rows``, where else the order of arrival would decide. There is one zero,
and a float that is no number, is infinite or lies beyond ±2**62 is missing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, fields
from datetime import timedelta
from typing import Any, Literal, TypeAlias, get_args

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import Field, Schema

Stat = Literal["count", "sum", "mean", "min", "max", "distinct", "last", "since", "recent"]
STATS: tuple[Stat, ...] = get_args(Stat)
Length: TypeAlias = str | timedelta
"""A length of time: a ``timedelta``, or a number and a unit, such as ``"90s"`` or ``"3h"``."""

FORGOTTEN = 64
"""After so many half-lives without news a decayed value is that of no observation."""

_KEYS = 16
"""Most columns of a key: as many as ``native/row.c`` has room for."""
_ROWS = (1 << 31) - 1
"""Most observations of a window by their number: the kernel counts them in 32 bits."""
_UNITS: Mapping[str, int] = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 7 * 86_400_000_000,
}
_LENGTH = re.compile(rf"(\d+)({'|'.join(_UNITS)})")
_ADDING: frozenset[Stat] = frozenset(("count", "sum", "mean"))
_PANES: frozenset[Stat] = frozenset((*_ADDING, "min", "max"))
_NUMERIC: frozenset[Stat] = frozenset(("sum", "mean", "min", "max", "last", "recent"))


def microseconds_of(length: Length, where: str) -> int:
    """A length of time in microseconds.

    Raises:
        ValueError: it is none, or not longer than nothing.
    """
    found = 0
    if isinstance(length, timedelta):
        found = length // timedelta(microseconds=1)
    elif match := _LENGTH.fullmatch(str(length).strip()):
        found = int(match[1]) * _UNITS[match[2]]
    if not 0 < found < 1 << 62:
        raise wrong(where, length, f"a length of time, such as '90s' or '3h' ({', '.join(_UNITS)})")
    return found


@dataclass(frozen=True)
class Window:
    """A column that a row gets from what was known before it of rows with the same key.

    Without ``over``, ``rows`` and ``half_life`` all that was ever known before counts. A missing
    value is not observed; a row whose key is missing gets an empty window and is not observed.

    Attributes:
        value: the column that is looked at; None for ``count`` and ``since`` of the rows.
        by: the key: one column or several.
        stat: ``count`` (int64), ``sum`` (float64, exact to 2**-64), ``mean`` (float64), ``min``,
            ``max`` and ``last`` (the column's own type), ``distinct`` (int64: how many different
            values), ``since`` (float64: seconds since the last one became known), ``recent`` (the
            last ``rows`` values, the newest first: a column of shape ``[rows]``). A window that
            holds nothing has a count, a distinct and a sum of 0, and is otherwise missing.
        over: how far back from the row's time.
        rows: only the last so many observations, within ``over`` if that is given too.
        half_life: instead of both: an observation counts 2**(-age / half_life), for ``count``,
            ``sum`` and ``mean``; ``count`` is then a float64.
        known: the timestamp column that says when the value was known; None: the row's own time.
            Where it is missing, the value never became known.
        resolution: a known time counts as the next multiple of this, and what is known at one
            time is kept as one: memory is then bounded by ``over / resolution`` for a key, however
            many observations it gets. For ``count``, ``sum``, ``mean``, ``min`` and ``max``.
    """

    value: str | None = None
    _: KW_ONLY
    by: str | Sequence[str]
    stat: Stat
    over: Length | None = None
    rows: int | None = None
    half_life: Length | None = None
    known: str | None = None
    resolution: Length | None = None

    def __post_init__(self) -> None:
        where = f"Window({self.value!r}, stat={self.stat!r})"
        if self.stat not in STATS:
            raise unknown("stat", str(self.stat), STATS, where)
        by = (self.by,) if isinstance(self.by, str) else tuple(self.by)
        if not 1 <= len(by) <= _KEYS:
            raise wrong(f"{where} by", self.by, f"1 to {_KEYS} columns")
        object.__setattr__(self, "by", by)
        for name in ("over", "half_life", "resolution"):
            length = getattr(self, name)
            if length is not None:
                object.__setattr__(self, name, f"{microseconds_of(length, f'{where} {name}')}us")
        if self.value is None and self.stat not in ("count", "since"):
            raise wrong(f"{where} value", None, "a column")
        if self.rows is not None and not 1 <= self.rows <= _ROWS:
            raise wrong(f"{where} rows", self.rows, f"1 to {_ROWS}")
        if self.stat == "recent" and self.rows is None:
            raise wrong(f"{where} rows", None, "how many values")
        if self.stat in ("min", "max", "distinct") and self.over is None and self.rows is None:
            raise wrong(f"{where} over", None, "a length of time, or rows=")
        if self.half_life is not None:
            if self.stat not in _ADDING:
                raise wrong(
                    f"{where} half_life", self.half_life, "none but for count, sum and mean"
                )
            if self.over is not None or self.rows is not None:
                raise wrong(f"{where} half_life", self.half_life, "neither over nor rows beside it")
        panes = self.stat in _PANES and self.rows is None and self.half_life is None
        if self.resolution is not None and not panes:
            allowed = "none but for count, sum, mean, min and max over a length of time"
            raise wrong(f"{where} resolution", self.resolution, allowed)

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns of the key."""
        return tuple(self.by)

    def field(self, name: str, schema: Schema) -> Field:
        """The column that the window gives.

        Raises:
            ValueError: a column is absent (suggests the nearest) or of a type that it doesn't take.
        """
        where = f"window {name!r}"
        for key in self.keys:
            found = schema.field(key, where)
            if found.shape or found.dtype not in ("string", "bytes", "int64", "timestamp"):
                raise wrong(f"{where}: key {key!r}", found.dtype, "text, integers or timestamps")
        if self.known is not None:
            found = schema.field(self.known, where)
            if found.dtype != "timestamp":
                raise wrong(f"{where}: known {self.known!r}", found.dtype, "timestamps")
        if self.value is None:
            return Field(
                name, "int64" if self.stat == "count" and not self.half_life else "float64"
            )
        column = schema.field(self.value, where)
        if column.shape or (self.stat in _NUMERIC and column.dtype in ("string", "bytes")):
            kind = f"{column.dtype} of shape {column.shape}" if column.shape else column.dtype
            raise wrong(f"{where}: column {self.value!r}", kind, f"numbers for {self.stat}")
        if self.stat == "distinct" or (self.stat == "count" and not self.half_life):
            return Field(name, "int64")
        if self.stat in ("count", "sum", "mean", "since"):
            if self.stat in ("sum", "mean") and column.dtype == "timestamp":
                raise wrong(f"{where}: column {self.value!r}", column.dtype, "numbers")
            return Field(name, "float64")
        shape = (self.rows,) if self.stat == "recent" else ()
        return Field(name, "float64" if column.dtype == "float32" else column.dtype, shape)


@dataclass(frozen=True)
class Track:
    """Observations that several windows look at: of one column, by one key, known at one time.

    Attributes:
        keys: the columns of the key.
        value: the column that is observed; None for rows themselves.
        known: the timestamp column from which on it counts.
        resolution: of known times, in microseconds; 0 keeps them as they are.
        windows: the columns that are read off it.
    """

    keys: tuple[str, ...]
    value: str | None
    known: str
    resolution: int
    windows: tuple[tuple[str, Window], ...]


@dataclass(frozen=True)
class Windows:
    """All windows of a step, and when its rows are asked.

    Attributes:
        time: the timestamp column at which a row is asked.
        columns: the windows by the names of the columns that they give.
        lateness: how much later than the latest one an observation may come, in microseconds; one
            that comes later is left out and counted. What lies behind by more cannot be asked.
    """

    time: str
    columns: tuple[tuple[str, Window], ...]
    lateness: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that it gives."""
        return tuple(name for name, _ in self.columns)

    @property
    def asked(self) -> tuple[str, ...]:
        """The columns that a row must have to be given its windows."""
        keys = (key for _, window in self.columns for key in window.keys)
        return tuple(dict.fromkeys((self.time, *keys)))

    @property
    def observed(self) -> tuple[str, ...]:
        """The columns that all tracks together observe."""
        found: dict[str, None] = {}
        for track in self.tracks:
            found |= dict.fromkeys((*track.keys, track.known))
            if track.value is not None:
                found[track.value] = None
        return tuple(found)

    @property
    def tracks(self) -> tuple[Track, ...]:
        """What has to be kept, each once, in order of first use."""
        held: dict[tuple[tuple[str, ...], str | None, str, int], list[tuple[str, Window]]] = {}
        for name, window in self.columns:
            known = window.known or self.time
            resolution = (
                0 if window.resolution is None else microseconds_of(window.resolution, name)
            )
            # Rows and a column's values are different observations: a value may be missing.
            held.setdefault((window.keys, window.value, known, resolution), []).append(
                (name, window)
            )
        return tuple(Track(*key, tuple(windows)) for key, windows in held.items())

    def fields(self, schema: Schema) -> tuple[Field, ...]:
        """The columns that it gives.

        Raises:
            ValueError: a column is absent (suggests the nearest) or of a wrong type, or there is
                one of that name.
        """
        time = schema.field(self.time, "with_windows, time")
        if time.dtype != "timestamp":
            raise wrong(f"with_windows: time {self.time!r}", time.dtype, "timestamps")
        for name in self.names:
            if name in schema:
                raise wrong(f"with_windows: column {name!r}", "one that is there", "a new name")
        return tuple(window.field(name, schema) for name, window in self.columns)

    def select(self, names: Sequence[str]) -> "Windows":
        """Only the windows that give these columns."""
        kept = tuple((name, window) for name, window in self.columns if name in names)
        return Windows(self.time, kept, self.lateness)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for a bundle's manifest."""
        windows = {
            name: {key: value for key, value in asdict(window).items() if value is not None}
            for name, window in self.columns
        }
        return {"time": self.time, "lateness": self.lateness, "columns": windows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Windows":
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        known = {field.name for field in fields(Window)}
        try:
            columns = dict(data["columns"])
            for name, options in columns.items():
                for key in options:
                    if key not in known:
                        raise unknown("key", key, known, f"window {name!r}")
            made = tuple((name, Window(**options)) for name, options in columns.items())
            return cls(str(data["time"]), made, int(data["lateness"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"windows: found {error!r}, allowed: what a bundle holds") from None
