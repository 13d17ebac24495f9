"""Predicted arrays as JSON text: a float32 as the shortest number that reads back to its bits."""

import math
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from drivetrain.core.batch import Array
from drivetrain.core.schema import MISSING_INT
from drivetrain.serve.native import compiled

_pack = struct.Struct("f").pack


def float32_in_python(value: float) -> str:
    """A float32 as JSON: at most nine digits (IEEE 754-2008 §5.12.2), null where not finite.

    Whoever reads it as a double and rounds to float32 has the same bits: that is checked here,
    not assumed, for two roundings are not always one.
    """
    if not math.isfinite(value):
        return "null"
    bits = _pack(value)
    for digits in ("%.7g", "%.8g", "%.9g"):
        text = digits % value
        if _pack(float(text)) == bits:
            return "-0.0" if text == "-0" else text  # an integer has no negative zero
    return repr(value)


float32_text: Callable[[float], str] = (
    float32_in_python if compiled is None else compiled.float32_text
)
"""The same, by the compiled part where it is there."""


def between_in_python(array: Array, before: bytes, behind: bytes) -> list[bytes]:
    """Each value of a float32 array, written like that between two texts."""
    values = array.reshape(-1).tolist()
    return [b"%b%b%b" % (before, float32_text(value).encode(), behind) for value in values]


floats_between: Callable[[Array, bytes, bytes], list[bytes]] = (
    between_in_python if compiled is None else compiled.floats_between
)
"""The same, by the compiled part where it is there."""


def float64_text(value: float) -> str:
    """A double as JSON: the shortest number with its bits, null where not finite."""
    return repr(value) if math.isfinite(value) else "null"


def _string_text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return msgspec.json.encode(value).decode()


def _int64_text(value: int) -> str:
    """An integer as JSON, null where it is missing: where no item is left for a place."""
    return "null" if value == MISSING_INT else str(value)


def _bool_text(value: bool) -> str:
    return "true" if value else "false"


_TEXT: dict[str, Callable[[Any], str]] = {
    "f": float32_text,
    "d": float64_text,
    "e": float64_text,
    "l": _int64_text,
    "q": _int64_text,
    "?": _bool_text,
    "O": _string_text,
    "U": _string_text,
    "S": _string_text,
}
"""By numpy's one-letter type codes: asking a dtype for its name takes longer than the rest."""


def texts(array: Array) -> list[str]:
    """Each element as JSON, row-major."""
    function = _TEXT.get(array.dtype.char, str)
    return [function(value) for value in array.reshape(-1).tolist()]


def nested(array: Array) -> list[str]:
    """Each row as JSON: a number, or lists in lists for rows that have a shape."""
    whole = _at_once(array) if array.ndim > 1 else None
    if whole is not None:
        return whole
    flat = texts(array)
    for axis in range(array.ndim - 1, 0, -1):
        size, count = array.shape[axis], math.prod(array.shape[:axis])
        flat = [f"[{','.join(flat[i * size : (i + 1) * size])}]" for i in range(count)]
    return flat


def _at_once(array: Array) -> list[str] | None:
    """Rows that have a shape, written without a call for each value; None where there is one
    that only its own call writes."""
    code = array.dtype.char
    if code == "f":
        if compiled is None or array.ndim != 2 or not array.size or not array.flags.c_contiguous:
            return None
        return compiled.float32_rows(array, array.shape[1])
    if code in "lq":
        plain = array.min(initial=0) != MISSING_INT
    else:  # bytes are text here, and base64 to msgspec
        plain = code == "U" or (code == "O" and set(map(type, array.flat)) == {str})
    return [msgspec.json.encode(row).decode() for row in array.tolist()] if plain else None


def only(array: Array) -> str:
    """The one row of an array as JSON."""
    if array.shape == (1,):
        return _TEXT.get(array.dtype.char, str)(array.item())
    return nested(array)[0]
