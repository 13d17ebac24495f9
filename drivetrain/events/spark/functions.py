"""Functions by which Spark asks DuckDB for casts that its own would read or write otherwise.

``CAST('1e3' AS BIGINT)``, a time with an offset or the text of a float: the engines have different
grammars. What both read alike never comes here (see ``events.forms``).
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import pyarrow as pa

from drivetrain.core.need import need

_CASTS: Mapping[str, tuple[str, str]] = {
    "int64": ("BIGINT", "bigint"),
    "float64": ("DOUBLE", "double"),
    "timestamp": ("TIMESTAMP", "timestamp_ntz"),
}
_TEXTS = ("text32", "text64", "text_us")


def register(spark: Any) -> None:
    """Make the functions known to a session; those of the same name are replaced."""
    functions = need("pyspark.sql.functions", "spark")
    made = {
        f"drivetrain_try_{name}": (f"TRY_CAST(x AS {kind})", result)
        for name, (kind, result) in _CASTS.items()
    }
    made |= {f"drivetrain_{name}": ("CAST(x AS VARCHAR)", "string") for name in _TEXTS}
    for name, (form, result) in made.items():
        spark.udf.register(name, functions.arrow_udf(_asking(form), result))


def _asking(form: str) -> Callable[[Any], Any]:
    def ask(column: pa.Array) -> pa.Array:
        return asked(form, column)

    return ask


def asked(form: str, column: pa.Array) -> pa.Array:
    """What DuckDB makes of each value ``x`` of an Arrow column; null of what it cannot read."""
    if column.null_count == len(column):
        return pa.nulls(len(column), _result(form))
    connection = _connection()
    connection.register("asked", pa.table({"x": column, "i": pa.array(range(len(column)))}))
    try:
        found = connection.sql(f"SELECT {form} AS y FROM asked ORDER BY i").to_arrow_table()["y"]
    finally:
        connection.unregister("asked")
    return found.combine_chunks().cast(_result(form))


def _result(form: str) -> pa.DataType:
    kinds = {"BIGINT": pa.int64(), "DOUBLE": pa.float64(), "TIMESTAMP": pa.timestamp("us")}
    return kinds.get(form.rpartition(" ")[2].rstrip(")"), pa.string())


@lru_cache
def _connection() -> Any:
    """One connection for each of Spark's Python workers, which have one thread."""
    return need("duckdb", "data").connect(":memory:", config={"threads": 1})
