"""Rows between Arrow and Spark: schemas, names of columns, and functions over Arrow tables."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from drivetrain.core.need import need
from drivetrain.core.schema import Field, Schema
from drivetrain.events.dialect.sql import identifier
from drivetrain.events.duckdb import ROW
from drivetrain.events.reading.arrow import arrow_type

_TYPES = {
    "string": "StringType",
    "bytes": "BinaryType",
    "int64": "LongType",
    "float32": "FloatType",
    "float64": "DoubleType",
    "timestamp": "TimestampNTZType",
}


def struct(fields: Iterable[Field], *further: str) -> Any:
    """The schema of a frame: columns under their identifiers, then integers such as ``ROW``."""
    types = need("pyspark.sql.types", "spark")
    found = [types.StructField(identifier(f.name), _type(types, f)) for f in fields]
    return types.StructType([*found, *(types.StructField(n, types.LongType()) for n in further)])


def _type(types: Any, field: Field) -> Any:
    kind = getattr(types, _TYPES[field.dtype])()
    for _ in field.shape:
        kind = types.ArrayType(kind)
    return kind


def over(
    frame: Any, function: Callable[[Iterator[pa.Table]], Iterator[pa.Table]], schema: Any
) -> Any:
    """What a function makes of each partition's rows, on the executors, order kept.

    Args:
        frame: the rows.
        function: from a partition's Arrow tables to those of the result, in the columns of
            ``schema``.
        schema: as :func:`struct` gives it.
    """
    names = schema.names

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        tables = (pa.Table.from_batches([batch]) for batch in batches)
        for table in function(tables):
            yield from _plain(table.select(names)).combine_chunks().to_batches()

    return frame.mapInArrow(run, schema)


def local_directory() -> Path | None:
    """Where an executor may spill: what it leaves there goes with it, however it ends.

    Source: https://spark.apache.org/docs/latest/configuration.html, ``spark.local.dir``.
    """
    first = os.environ.get("SPARK_LOCAL_DIRS", "").partition(",")[0]
    return Path(first) if first and Path(first).is_dir() else None


def _plain(table: pa.Table) -> pa.Table:
    """The same with lists of any length where Arrow has ones of a fixed length, as Spark wants."""
    for position, item in enumerate(table.schema):
        if pa.types.is_fixed_size_list(item.type):
            column = table.column(position).cast(_any_length(item.type))
            table = table.set_column(position, item.name, column)
    return table


def _any_length(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_any_length(kind.value_type))
    return kind


def named(table: pa.Table, numbers: pa.Array) -> pa.Table:
    """Columns under their identifiers, with the number of each row."""
    table = table.rename_columns([identifier(name) for name in table.column_names])
    return table.append_column(ROW, numbers)


def columns(table: pa.Table, schema: Schema) -> pa.Table:
    """Columns under their own names and in their own types."""
    found = [_fixed(table[identifier(f.name)], arrow_type(f)) for f in schema]
    return pa.table(found, names=list(schema.names))


def _fixed(column: Any, due: pa.DataType) -> Any:
    return column if column.type == due else column.cast(due)
