"""The steps that bring in columns of another table: by key, and as of a time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import Field, Schema
from drivetrain.events.split import SPLIT
from drivetrain.events.table import Keys, Step, Table


def pairs(where: str, keys: Keys, *, empty: bool = False) -> tuple[tuple[str, str], ...]:
    """Key columns as ``(left, right)`` names.

    Raises:
        ValueError: there is none where one is due.
    """
    if isinstance(keys, str):
        keys = (keys,)
    named = keys.items() if isinstance(keys, Mapping) else ((key, key) for key in keys)
    found = tuple((str(left), str(right)) for left, right in named)
    if not found and not empty:
        raise wrong(f"{where} on", keys, "at least one column")
    return found


@dataclass(frozen=True, eq=False)
class Lookup(Step):
    """A step that adds columns of another table."""

    other: Table = field(repr=False)
    columns: tuple[str, ...] | None
    suffix: str

    def _keys(self) -> tuple[tuple[str, str], ...]:
        raise AssertionError(type(self))

    def _left_out(self) -> frozenset[str]:
        """Columns of ``other`` that are added only when named."""
        return frozenset(right for _, right in self._keys())

    def reads(self, added: Iterable[str]) -> list[str]:
        """The columns of ``other`` that are looked at where these of it are added."""
        return list(dict.fromkeys([*sorted(self._left_out()), *added]))

    def added(self, schema: Schema, other: Schema) -> dict[str, Field]:
        """The fields that the step adds by their names in ``other``, under their new names.

        Raises:
            ValueError: a name that is not there, or one that this table has already.
        """
        names = self.columns
        if names is None:
            names = tuple(name for name in other.names if name not in self._left_out())
        fields: dict[str, Field] = {}
        taken = set(schema.names)
        for name in names:
            found = other.field(name, f"{self.label}, columns of the other table")
            new = name + self.suffix if name in schema else name
            if new in taken:
                raise ValueError(
                    f"{self.label}: found {new!r} on both sides, allowed: a name of its own for "
                    "each column; choose with columns=(…) or set suffix='_right'."
                )
            taken.add(new)
            fields[name] = Field(new, found.dtype, found.shape)
        return fields

    def check_keys(self, schema: Schema, other: Schema) -> None:
        """Hold the key columns of both sides against each other.

        Raises:
            ValueError: a column is absent, or the two are of different types.
        """
        for left, right in self._keys():
            a = schema.field(left, self.label)
            b = other.field(right, f"{self.label}, keys of the other table")
            if a.dtype != b.dtype or a.shape or b.shape:
                raise ValueError(
                    f"{self.label}: found {a.dtype} {left!r} beside {b.dtype} {right!r}, allowed: "
                    "keys of one type; cast one of them."
                )

    def required(self, needed: frozenset[str], schema: Schema) -> frozenset[str]:
        kept = frozenset(name for name in needed if name in schema or name == SPLIT)
        return kept | {left for left, _ in self._keys()}

    def output(self, schema: Schema) -> Schema:
        other = self.other.schema
        self.check_keys(schema, other)
        return Schema((*schema, *self.added(schema, other).values()))


@dataclass(frozen=True, eq=False)
class Join(Lookup):
    """Adds the columns of the one row of another table with the same key."""

    on: tuple[tuple[str, str], ...]
    how: Literal["left", "inner"]

    def __post_init__(self) -> None:
        if self.how not in ("left", "inner"):
            raise unknown("kind of join", self.how, ("left", "inner"), self.label)

    @property
    def label(self) -> str:
        return f"join(on={_written(self.on)}, how={self.how!r})"

    def twice(self, key: Sequence[object], times: int) -> ValueError:
        """The error for a key that occurs several times in the other table."""
        names = [right for _, right in self.on]
        found = ", ".join(f"{name} = {value!r}" for name, value in zip(names, key, strict=True))
        return ValueError(
            f"{self.label}: found the key {found} {times} times in the other table, allowed: each "
            "key once, so that a join never multiplies rows; "
            f".drop_duplicates({', '.join(map(repr, names))}) keeps the first of each."
        )

    def _keys(self) -> tuple[tuple[str, str], ...]:
        return self.on


@dataclass(frozen=True, eq=False)
class AsOfJoin(Lookup):
    """Adds the columns of the last row of another table before this row's time."""

    on_time: tuple[str, str]
    by: tuple[tuple[str, str], ...]
    strict: bool
    tolerance_us: int | None

    @property
    def label(self) -> str:
        return f"join_asof(time={self.on_time!r}, by={_written(self.by)})"

    def _keys(self) -> tuple[tuple[str, str], ...]:
        return self.by

    def _left_out(self) -> frozenset[str]:
        return super()._left_out() | {self.on_time[1]}

    def check_keys(self, schema: Schema, other: Schema) -> None:
        super().check_keys(schema, other)
        for side, name, where in (
            (schema, self.on_time[0], self.label),
            (other, self.on_time[1], f"{self.label}, time of the other table"),
        ):
            if (found := side.field(name, where)).dtype != "timestamp" or found.shape:
                raise wrong(f"column {name!r} in {where}", found.dtype, "timestamps")

    def required(self, needed: frozenset[str], schema: Schema) -> frozenset[str]:
        return super().required(needed, schema) | {self.on_time[0]}


def _written(keys: tuple[tuple[str, str], ...]) -> str:
    if all(left == right for left, right in keys):
        names = [left for left, _ in keys]
        return repr(names[0]) if len(names) == 1 else repr(tuple(names))
    return repr(dict(keys))
