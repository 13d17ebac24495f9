"""Values as a person writes them, None for what is missing, as the arrays of columns."""

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any, cast

import numpy as np

from drivetrain.core.column import Array
from drivetrain.core.errors import wrong
from drivetrain.core.schema import MISSING_INT, Field

_EPOCH = datetime(1970, 1, 1)
_NUMBERS: tuple[type[Any], ...] = (int, float, np.integer, np.floating, np.bool_)


def column_of(values: Sequence[Any], field: Field) -> Array:
    """Python values, None for what is missing, as the array that ``field`` describes.

    Raises:
        ValueError: a value of the wrong type; names the row and the column.
    """
    if field.shape:
        return _nested(values, field)
    convert = _CONVERT.get(field.dtype)
    assert convert is not None, f"{field.dtype} is no type of a raw column"
    allowed, function = convert
    found: list[Any] = []
    for number, value in enumerate(values):
        try:
            found.append(function(value))
        except (TypeError, ValueError, OverflowError):
            raise wrong(f"row {number}, column {field.name!r}", value, allowed) from None
    array = np.empty(len(found), dtype=field.numpy)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and infinite is missing
        array[:] = found
    return array


def _nested(values: Sequence[Any], field: Field) -> Array:
    rows: list[Array] = []
    for number, value in enumerate(values):
        where = f"row {number}, column {field.name!r}"
        if value is None and None not in field.shape:
            nothing = {"string": "", "bytes": b""}.get(field.dtype, missing_number(field))
            value = np.full([n or 0 for n in field.shape], nothing, field.numpy)
        try:
            row = _array(value, field)
        except (TypeError, ValueError, OverflowError):
            raise wrong(where, value, f"{field.dtype} values of shape {field.shape}") from None
        if len(row.shape) != len(field.shape) or any(
            allowed not in (None, n) for n, allowed in zip(row.shape, field.shape, strict=True)
        ):
            raise wrong(where, row.shape, f"shape {field.shape}")
        if rows and row.shape != rows[0].shape:
            raise wrong(where, row.shape, f"shape {rows[0].shape}, as the first row has")
        rows.append(row)
    return np.stack(rows) if rows else np.empty((0, *(n or 0 for n in field.shape)), field.numpy)


def _array(value: Any, field: Field) -> Array:
    """A value with a shape; its elements are held to what a column without one takes."""
    with np.errstate(over="ignore"):
        row = np.asarray(value, dtype=field.numpy)
    if row.dtype.kind == "O":
        inner = column_of(row.reshape(-1).tolist(), Field(field.name, field.dtype))
        return np.asarray(inner, dtype=field.numpy).reshape(row.shape)
    given = np.asarray(value)
    if row.dtype.kind in "iu" and given.dtype.kind == "f" and not np.array_equal(row, given):
        raise ValueError("an element is no integer")
    return row


def missing_number(field: Field) -> float | int:
    """How a missing element of a numeric field travels; narrow integers have only 0 for it."""
    if field.dtype.startswith("float"):
        return float("nan")
    return MISSING_INT if field.numpy == "int64" else 0


def _string(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # a lone surrogate is no text that UTF-8 can carry
    return value


def _bytes(value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(cast("bytes", value))
    raise TypeError


def _integer(value: Any) -> int:
    if value is None:
        return MISSING_INT
    if not isinstance(value, _NUMBERS):
        raise TypeError
    if value != value or value in (math.inf, -math.inf):
        return MISSING_INT
    number = int(value)
    if number != value:
        raise TypeError
    if not -(2**63) <= number < 2**63:
        raise OverflowError
    return number


def _float(value: Any) -> float:
    if value is None:
        return float("nan")
    if not isinstance(value, _NUMBERS):
        raise TypeError
    return float(value)


def microseconds(value: Any) -> int:
    """A moment as int64 microseconds since 1970-01-01; aware ones are turned to UTC."""
    if value is None:
        return MISSING_INT
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if isinstance(value, datetime):
        # not by astimezone, which fails where UTC lies before the year 1 or behind 9999
        delta = value.replace(tzinfo=None) - _EPOCH - (value.utcoffset() or timedelta())
        return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
    return _integer(value)


_CONVERT: Mapping[str, tuple[str, Any]] = {
    "string": ("a string or null", _string),
    "bytes": ("bytes, a string or null", _bytes),
    "int64": ("an integer of 64 bits, a bool or null", _integer),
    "float32": ("a number or null", _float),
    "float64": ("a number or null", _float),
    "timestamp": ("an ISO 8601 time, integer microseconds or null", microseconds),
}
