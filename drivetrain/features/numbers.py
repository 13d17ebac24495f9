"""Numeric columns within a graph: one float64 matrix, and which of its values are there."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from drivetrain.core.schema import MISSING_INT
from drivetrain.features.column import INTEGERS, TEXTS

if TYPE_CHECKING:
    from drivetrain.features.builder import Builder

FLOAT32_MAX = 3.4028234663852886e38


def numbers(graph: "Builder", columns: Sequence[str], widen: bool = True) -> tuple[str, str]:
    """Columns as ``[width of all, rows]``, and a boolean tensor that says which are finite.

    Missing integers become NaN. Neighbours of one type share their nodes. A single column of
    higher rank keeps its shape ``[rows, *shape]``.

    Args:
        graph: the builder.
        columns: numeric columns, scalars or vectors.
        widen: turn to float64; without it the columns must all be float32.
    """
    fields = [graph.schema.field(name) for name in columns]
    assert widen or all(field.dtype == "float32" for field in fields)
    parts: list[str] = []
    for (integer, dtype, rank), run in groupby(
        fields, key=lambda f: (f.dtype in INTEGERS, f.dtype, len(f.shape))
    ):
        names = [graph.column(field.name) for field in run]
        if rank == 0:
            tensors = [graph.stack(names)]
        else:
            tensors = [graph.transpose(name) if rank == 1 else name for name in names]
        values = graph.concat(tensors)
        if widen and dtype != "float64":
            plain = graph.cast(values, "float64")
            values = _or_nan(graph, values, plain) if integer else plain
        parts.append(values)
    values = graph.concat(parts)
    infinity = graph.constant(float("inf"), "float64" if widen else "float32")
    return values, graph.op("Less", graph.op("Abs", values), infinity)


def _or_nan(graph: "Builder", integers: str, floats: str) -> str:
    missing = graph.op("Equal", integers, graph.constant(MISSING_INT, "int64"))
    return graph.op("Where", missing, graph.constant(float("nan"), "float64"), floats)


def as_float32(graph: "Builder", values: str) -> str:
    """Numbers as float32; what it can't hold becomes its greatest or least finite value."""
    bounds = (graph.constant(x, "float64") for x in (-FLOAT32_MAX, FLOAT32_MAX))
    return graph.cast(graph.op("Clip", values, *bounds), "float32")


def present(graph: "Builder", column: str) -> str:
    """Whether a column has a value, boolean ``[rows]``."""
    dtype = graph.schema.field(column).dtype
    if dtype == "bytes":
        first = graph.op("ReduceMax", graph.bytes(column, 1), graph.ints(1), keepdims=0)
        return graph.cast(first, "bool")
    name = graph.column(column)
    if dtype in TEXTS:
        return graph.op("Not", graph.op("Equal", name, graph.constant("", "string")))
    if dtype in INTEGERS:
        return graph.op("Not", graph.op("Equal", name, graph.constant(MISSING_INT, "int64")))
    return graph.op("Less", graph.op("Abs", name), graph.constant(float("inf"), dtype))
