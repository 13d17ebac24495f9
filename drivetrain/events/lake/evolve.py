"""What columns become in a table of a lake: types that fit, columns that are new or absent."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from drivetrain.core.arrow import field_of_arrow
from drivetrain.core.errors import wrong
from drivetrain.core.schema import Field, Schema
from drivetrain.events.reading.arrow import TYPES, normalise

SHAPE = b"drivetrain.shape"
"""Metadata of a column of vectors: the shape of a row, which a list in a table does not have."""

UTC = pa.timestamp("us", "UTC")
"""Times are moments in a table: of every type of time, the one that all readers know."""


def lake_field(field: Field) -> pa.Field:
    """The column of a table that holds a column of events."""
    kind = UTC if field.dtype == "timestamp" else TYPES[field.dtype]
    for _ in field.shape:
        kind = pa.list_(kind)
    metadata = {SHAPE: json.dumps(field.shape).encode()} if field.shape else None
    return pa.field(field.name, kind, metadata=metadata)


def field_of(item: pa.Field) -> Field | None:
    """The column of events that a table's column gives, or None where none can hold it."""
    shape = json.loads((item.metadata or {}).get(SHAPE, b"[]"))
    try:
        return field_of_arrow(item.name, vectors(item.type, shape))
    except ValueError:
        return None


def vectors(kind: pa.DataType, shape: Sequence[int | None]) -> pa.DataType:
    """The type of lists, as vectors of a shape; without a shape the type itself."""
    for _ in shape:
        kind = kind.value_type
    for size in reversed(shape):
        assert size is not None
        kind = pa.list_(kind, size)
    return kind


def fields_of(schema: pa.Schema) -> dict[str, Field]:
    """The columns of events that a table gives, by name; those of nested types are left out."""
    found = ((item.name, field_of(item)) for item in schema)
    return {name: field for name, field in found if field is not None}


def fit(rows: pa.Table, due: pa.Schema, where: str) -> tuple[pa.Table, bool]:
    """Rows in the columns and types of a table; whether they bring columns that it lacks.

    A column that is absent is null. Integers of any width are int64, and a float32 goes where the
    table has a float64; no other type becomes another. A column that is null throughout and that
    the table lacks is left out, for it says nothing of its type.

    Args:
        rows: what is to be appended.
        due: the table's columns.
        where: the table, for errors.

    Raises:
        ValueError: a column is of another type than the table's, holds what that type cannot, or
            is there twice.
    """
    names = rows.schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise wrong(f"{where}, columns", twice, "each name once")
    added = [
        _new(item, where)
        for item in rows.schema
        if item.name not in due.names and not pa.types.is_null(item.type)
    ]
    whole = pa.schema([*due, *added])
    if added:
        _apart(whole.names, where)
    columns = [
        _fitted(rows.column(item.name), item, where)
        if item.name in names
        else pa.nulls(len(rows), item.type)
        for item in whole
    ]
    return pa.Table.from_arrays(columns, schema=whole), bool(added)


def lake_schema(schema: Schema, where: str) -> pa.Schema:
    """The columns of a table that holds columns of events.

    Raises:
        ValueError: two names differ in case alone.
    """
    _apart(schema.names, where)
    return pa.schema([lake_field(field) for field in schema])


def _apart(names: Sequence[str], where: str) -> None:
    """Hold that names differ in more than case, as those of a Delta table have to."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            found = f"{name!r} beside {other!r}"
            raise wrong(f"{where}, columns", found, "names that differ in more than case")


def _new(item: pa.Field, where: str) -> pa.Field:
    try:
        return lake_field(field_of_arrow(item.name, item.type))
    except ValueError as error:
        raise ValueError(f"{where}, {error}") from None


def _fitted(column: pa.ChunkedArray, item: pa.Field, where: str) -> Any:
    """A column in the type of the table's."""
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), item.type)
    due = field_of(item)
    if column.type == item.type and (due is None or due.dtype not in ("float32", "float64")):
        return column
    try:
        if due is not None and due.shape and pa.types.is_list(column.type):
            column = column.cast(vectors(column.type, due.shape))
        found = field_of_arrow(item.name, column.type)
    except (ValueError, AttributeError):  # nested, or less deep than vectors of that shape
        found = None
    widened = found and due and (found.dtype, due.dtype) == ("float32", "float64")
    if found is None or due is None or (found != due and not widened) or found.shape != due.shape:
        allowed = f"{item.type}, as the table has it; give the new one another name"
        raise ValueError(f"{where}, column {item.name!r}: found {column.type}, allowed: {allowed}.")
    table = normalise(pa.table({item.name: column}), Schema((due,)), where)
    try:
        return table.column(0).cast(item.type)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{where}, column {item.name!r}: found a value that is not one of the table's "
            f"({error}), allowed: {item.type}."
        ) from None
