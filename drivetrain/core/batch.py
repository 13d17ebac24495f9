"""Named columns of equal length, and what of them a graph is fed."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drivetrain.core.arrow import ArrowTable, arrow_of_column, column_of_arrow
from drivetrain.core.column import Array, Categorical, Column
from drivetrain.core.errors import unknown
from drivetrain.core.need import need
from drivetrain.core.pixels import pixels
from drivetrain.core.schema import Schema
from drivetrain.core.values import column_of

BYTES_SUFFIX = ".utf8"
"""A graph input ``title.utf8`` takes the column ``title`` as UTF-8 bytes, a padded matrix."""
PIXELS_SUFFIX = ".pixels"
"""A graph input ``photo.pixels`` takes the column ``photo`` decoded from its image format."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows as columns. Missing values are NaN, ``MISSING_INT``, ``""`` and ``b""``."""

    columns: Mapping[str, Column]

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of a batch have one length; found {lengths}")

    def __len__(self) -> int:
        return next((len(column) for column in self.columns.values()), 0)

    def __getitem__(self, name: str) -> Array:
        """One column, decoded to a plain array."""
        column = self.column(name)
        return column.decode() if isinstance(column, Categorical) else column

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def column(self, name: str) -> Column:
        """One column as it is held.

        Raises:
            ValueError: there is none; the error suggests the nearest name.
        """
        try:
            return self.columns[name]
        except KeyError:
            raise unknown("column", name, self.columns) from None

    def select(self, names: Iterable[str]) -> "Batch":
        """The columns called ``names``, in that order."""
        return Batch({name: self.column(name) for name in names})

    def with_columns(self, columns: Mapping[str, Column]) -> "Batch":
        """This batch with columns added or replaced."""
        return Batch({**self.columns, **columns})

    def slice(self, start: int, stop: int) -> "Batch":
        """Rows ``start`` to ``stop``, as views."""
        return Batch({name: column[start:stop] for name, column in self.columns.items()})

    def take(self, rows: Array) -> "Batch":
        """The rows at the given positions, copied."""
        return Batch({name: column[rows] for name, column in self.columns.items()})

    @classmethod
    def concat(cls, batches: Sequence["Batch"]) -> "Batch":
        """All rows of batches that have the same columns, in order."""
        if not batches:
            raise ValueError("nothing to concatenate: found 0 batches, allowed: 1 or more")
        if len(batches) == 1:
            return batches[0]
        return cls({n: np.concatenate([batch[n] for batch in batches]) for n in batches[0].columns})

    def rows(self) -> Iterator[dict[str, Any]]:
        """One dictionary of plain Python values a row."""
        columns = {name: self[name].tolist() for name in self.columns}
        for i in range(len(self)):
            yield {name: column[i] for name, column in columns.items()}

    # -- Arrow ---------------------------------------------------------------------------------

    @classmethod
    def from_arrow(cls, table: ArrowTable, schema: Schema) -> "Batch":
        """The columns of ``schema`` out of an Arrow table, missing values made explicit.

        Raises:
            ValueError: a column is absent or holds another type than the schema says.
        """
        columns: dict[str, Column] = {}
        for field in schema:
            position = table.schema.get_field_index(field.name)
            if position < 0:
                raise unknown("column", field.name, table.schema.names)
            column = table.column(position)
            if hasattr(column, "combine_chunks"):
                column = column.combine_chunks()
            columns[field.name] = column_of_arrow(column, field)
        return cls(columns)

    def to_arrow(self) -> ArrowTable:
        """An Arrow table; missing values stay in their explicit form, floats' NaN apart."""
        table = need("pyarrow", "data").table
        return table({name: arrow_of_column(column) for name, column in self.columns.items()})

    # -- rows as a person writes them ----------------------------------------------------------

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], schema: Schema) -> "Batch":
        """Rows as dictionaries, None for what is missing, checked against ``schema``.

        Timestamps are ISO 8601 strings, datetimes or integer microseconds.

        Raises:
            ValueError: a column is absent, unknown or of the wrong type; names row and column.
        """
        allowed = frozenset(schema.names)
        for number, row in enumerate(rows):
            if not row.keys() ^ allowed:
                continue
            for name in row:
                if name not in allowed:
                    raise unknown("column", name, schema.names, f"row {number}")
            absent = [name for name in schema.names if name not in row]
            raise ValueError(
                f"row {number}: found no column {', '.join(map(repr, absent))}, allowed: "
                f"a value or null for each of {', '.join(schema.names)}."
            )
        return cls({f.name: column_of([row[f.name] for row in rows], f) for f in schema})


# -- what a graph is fed ---------------------------------------------------------------------------


def byte_matrix(values: Array, limit: int | None = None) -> Array:
    """Strings or bytes as a zero-padded uint8 matrix ``[rows, longest]``, at least one wide.

    Args:
        values: object ``[rows]``.
        limit: how many bytes of each value are kept; None keeps all.
    """
    encoded = [v.encode() if isinstance(v, str) else v for v in values.tolist()]
    if limit is not None:
        encoded = [value[:limit] for value in encoded]
    width = max((len(value) for value in encoded), default=0) or 1
    joined = b"".join(value.ljust(width, b"\0") for value in encoded)
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(encoded), width)


_LIMIT = re.compile(r"_max_(\d+)$")


def feed(batch: Batch, name: str, shape: Sequence[int | str | None]) -> Array:
    """The array that a graph's input ``name`` takes out of ``batch``.

    An input ``title.utf8`` takes the bytes of the column ``title``; a dimension named
    ``…_max_256`` in its ``shape`` says how many of them it reads. An input ``photo.pixels``
    takes the encoded images of the column ``photo`` as pixels of the size in its ``shape``.

    Raises:
        ValueError: the batch has no such column (the error suggests the nearest), or a value is
            no image.
    """
    if name in batch:
        return batch[name]
    if name.endswith(PIXELS_SUFFIX):
        images = name.removesuffix(PIXELS_SUFFIX)
        return pixels(batch[images], shape, images)
    if not name.endswith(BYTES_SUFFIX):
        raise unknown("column", name, batch.columns)
    last = shape[-1] if shape else None
    limit = _LIMIT.search(last) if isinstance(last, str) else None
    column = batch.column(name.removesuffix(BYTES_SUFFIX))
    most = int(limit.group(1)) if limit else None
    if isinstance(column, Categorical):
        return byte_matrix(column.values, most)[column.codes]
    return byte_matrix(column, most)
