"""Columns from Arrow's types and to them."""

import math
from typing import Any

import numpy as np

from drivetrain.core.column import Array, Categorical, Column
from drivetrain.core.errors import wrong
from drivetrain.core.need import need
from drivetrain.core.schema import Dtype, Field
from drivetrain.core.values import missing_number

ArrowTable = Any
"""A ``pyarrow.Table`` or ``pyarrow.RecordBatch``; pyarrow ships no types."""

ArrowType = Any
"""A ``pyarrow.DataType``."""

_NUMERIC = ("int64", "float32", "float64")


def field_of_arrow(name: str, kind: ArrowType) -> Field:
    """The field that holds an Arrow column.

    Raises:
        ValueError: no field can hold that type.
    """
    types = need("pyarrow", "data").types
    if types.is_dictionary(kind):
        return field_of_arrow(name, kind.value_type)
    if types.is_fixed_size_list(kind):
        inner = field_of_arrow(name, kind.value_type)
        if inner.dtype in (*_NUMERIC, "string"):
            return Field(name, inner.dtype, (kind.list_size, *inner.shape))
    tests: tuple[tuple[Dtype, str], ...] = (
        ("string", "string large_string string_view null"),
        ("bytes", "binary large_binary binary_view fixed_size_binary"),
        ("timestamp", "timestamp date"),
        ("int64", "integer boolean"),
        ("float32", "float16 float32"),
        ("float64", "float64 decimal"),
    )
    for dtype, names in tests:
        if any(getattr(types, f"is_{test}")(kind) for test in names.split()):
            return Field(name, dtype)
    raise wrong(
        f"column {name!r}",
        str(kind),
        "strings, bytes, integers, booleans, floats, decimals, dates, timestamps and "
        "fixed-size lists of numbers or strings",
    )


def column_of_arrow(column: Any, field: Field) -> Column:
    """An Arrow column as ``field`` describes it, missing values made explicit.

    Raises:
        ValueError: it holds another type.
    """
    pa = need("pyarrow", "data")
    pc = need("pyarrow.compute", "data")
    where = f"column {field.name!r}"
    if pa.types.is_null(column.type):  # a column that is null throughout can be of any type
        column = column.cast(_arrow_type(field))
    found = field_of_arrow(field.name, column.type)
    if found.dtype != field.dtype and not (found.dtype in _NUMERIC and field.dtype in _NUMERIC):
        raise wrong(where, str(column.type), f"{field.dtype} as declared")
    if math.prod(n or 0 for n in found.shape) != math.prod(n or 0 for n in field.shape):
        raise wrong(where, str(column.type), f"{field.dtype} of shape {field.shape}")
    if field.shape and field.dtype == "string":
        return _texts(column.cast(_arrow_type(found)), field)  # views, codes and nulls too
    if field.dtype in ("string", "bytes"):
        if not pa.types.is_dictionary(column.type):
            column = pc.dictionary_encode(column)
        return _categorical(column, "" if field.dtype == "string" else b"")
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    rows = len(column)
    column = elements(column)
    try:
        return _numbers(column, field).reshape(rows, *field.shape)
    except pa.ArrowInvalid as error:
        raise wrong(where, str(error), f"{field.dtype} as declared") from None


def arrow_of_column(column: Column) -> Any:
    """An Arrow array; missing values stay in their explicit form, floats' NaN apart."""
    pa = need("pyarrow", "data")
    if isinstance(column, Categorical):
        return pa.DictionaryArray.from_arrays(column.codes, column.values)
    if column.ndim > 1:
        return pa.FixedSizeListArray.from_arrays(
            pa.array(column.reshape(-1)), math.prod(column.shape[1:])
        )
    return pa.array(column)


def _texts(column: Any, field: Field) -> Array:
    """Fixed-size lists of strings as an object array; a missing one is the empty string."""
    found: Array = elements(column).fill_null("").to_numpy(zero_copy_only=False)
    return found.astype(object, copy=False).reshape(len(column), *field.shape)


def _numbers(column: Any, field: Field) -> Array:
    """Numbers, moments and booleans as one flat array of the field's type."""
    pa = need("pyarrow", "data")
    pc = need("pyarrow.compute", "data")
    kind = column.type
    whole = field.numpy == "int64"
    if field.dtype == "timestamp":
        if pa.types.is_date(kind):
            column, kind = column.cast(pa.timestamp("s")), pa.timestamp("s")
        # finer times lose what is below a microsecond; coarser ones must not overflow
        column = column.cast(pa.timestamp("us", kind.tz), safe=kind.unit in ("s", "ms"))
    elif whole and pa.types.is_floating(kind):
        column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, kind))
    elif not whole and not pa.types.is_floating(kind):
        if pa.types.is_boolean(kind):
            column = column.cast(pa.uint8())
        column = column.cast(pa.float64(), safe=False)  # rounds to the nearest, as floats do
    if whole:
        column = column.cast(pa.int64())
    if column.null_count:
        column = column.fill_null(pa.scalar(missing_number(field), column.type))
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and infinite is missing
        return column.to_numpy(zero_copy_only=False).astype(field.numpy, copy=False)


def _arrow_type(field: Field) -> ArrowType:
    pa = need("pyarrow", "data")
    kinds = {"string": pa.string(), "bytes": pa.binary(), "timestamp": pa.timestamp("us")}
    kind = kinds.get(field.dtype) or pa.from_numpy_dtype(field.numpy)
    for size in reversed(field.shape):
        kind = pa.list_(kind, size or 0)
    return kind


def elements(column: Any) -> Any:
    """The elements of fixed-size lists, however deep; a missing list has as many missing ones."""
    pa = need("pyarrow", "data")
    while pa.types.is_fixed_size_list(column.type):
        if not column.null_count:
            column = column.flatten()
            continue
        width: int = column.type.list_size
        start: int = column.offset * width
        stop: int = start + len(column) * width
        at = np.arange(start, stop)
        absent = np.repeat(~column.is_valid().to_numpy(zero_copy_only=False), width)
        column = column.values.take(pa.array(at, mask=absent))
    return column


def _categorical(column: Any, missing: str | bytes) -> Categorical:
    values: Array = column.dictionary.to_numpy(zero_copy_only=False).astype(object, copy=False)
    codes = column.indices
    if codes.null_count or column.dictionary.null_count:
        values = np.array([*(missing if v is None else v for v in values), missing], dtype=object)
        codes = codes.cast("int32").fill_null(len(values) - 1)
    return Categorical(codes.to_numpy(zero_copy_only=False).astype(np.int32, copy=False), values)
