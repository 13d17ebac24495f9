"""Arrow columns brought to the few types that plans compute with."""

from typing import Any

import pyarrow as pa

from drivetrain.core.arrow import field_of_arrow
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.need import need
from drivetrain.core.schema import Field, Schema

pc = need("pyarrow.compute", "data")

TYPES = {
    "string": pa.string(),
    "bytes": pa.binary(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "timestamp": pa.timestamp("us"),
}


def arrow_type(field: Field) -> pa.DataType:
    """The Arrow type of a column of events."""
    kind = TYPES[field.dtype]
    for size in reversed(field.shape):
        assert size is not None
        kind = pa.list_(kind, size)
    return kind


def arrow_schema(schema: Schema) -> pa.Schema:
    """The Arrow schema of columns of events."""
    return pa.schema([(field.name, arrow_type(field)) for field in schema])


def schema_of_arrow(found: pa.Schema) -> Schema:
    """The columns that a plan can hold; nested ones are left out."""
    fields: list[Field] = []
    for item in found:
        try:
            field = field_of_arrow(item.name, item.type)
        except ValueError:
            continue
        fields.append(field)
    return Schema(tuple(fields))


def normalise(table: pa.Table, schema: Schema, where: str) -> pa.Table:
    """The columns of ``schema`` out of a table, in its types, with NaN as null.

    Args:
        table: what was read.
        schema: what is due.
        where: the file, for errors.

    Raises:
        ValueError: a column is absent, or holds values that its type can't.
    """
    columns = []
    for field in schema:
        position = table.schema.get_field_index(field.name)
        if position < 0:
            raise unknown("column", field.name, table.schema.names, where)
        columns.append(_column(table.column(position), field, where))
    return pa.Table.from_arrays(columns, schema=arrow_schema(schema))


def _column(column: Any, field: Field, where: str) -> Any:
    due = arrow_type(field)
    found = column.type
    try:
        if pa.types.is_dictionary(found):
            column, found = column.cast(found.value_type), found.value_type
        if pa.types.is_timestamp(found) and field.dtype == "timestamp":
            # finer times lose what is below a microsecond; coarser ones must not overflow
            utc = column.cast(pa.timestamp("us", found.tz), safe=found.unit in ("s", "ms"))
            column = utc if found.tz is None else utc.cast(pa.int64()).cast(due)
        elif found != due:
            _allow(found, field)
            column = column.cast(due)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        allowed = f"{field.dtype}, as in the first file"
        raise ValueError(
            f"{where}, column {field.name!r}: found {found} ({error}), allowed: {allowed}."
        ) from None
    if field.dtype in ("float32", "float64") and not field.shape:
        bad = pc.is_nan(column)
        if pc.any(bad).as_py():
            column = pc.if_else(bad, pa.scalar(None, due), column)
    return column


def _allow(found: pa.DataType, field: Field) -> None:
    """Numbers may become numbers of another type, and a column of nulls anything; no more."""
    if pa.types.is_null(found):
        return
    dtype = field_of_arrow(field.name, found).dtype
    numbers = ("int64", "float32", "float64")
    if dtype != field.dtype and not (dtype in numbers and field.dtype in numbers):
        raise wrong("its type", dtype, field.dtype)
