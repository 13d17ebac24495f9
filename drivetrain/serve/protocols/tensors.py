"""Tensors of the Open Inference Protocol V2, as JSON and as binary data, to columns and back.

Source: https://github.com/open-inference/open-inference-protocol (rest/inference_rest.yaml) and
Triton's binary tensor data extension.
"""

import math
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.core.schema import Field
from drivetrain.core.values import column_of
from drivetrain.serve.execution.columns import Values
from drivetrain.serve.protocols.values import texts

LITTLE = sys.byteorder == "little"
_NONE = type(None)
_ALLOWED: Mapping[str, tuple[frozenset[type], str]] = {
    "BYTES": (frozenset({str, _NONE}), "a string or null"),
    "INT64": (frozenset({int, _NONE}), "an integer of 64 bits or null"),
    "FP32": (frozenset({int, float, _NONE}), "a number or null"),
    "FP64": (frozenset({int, float, _NONE}), "a number or null"),
}
WIRE: Mapping[str, str] = {"INT64": "<i8", "FP32": "<f4", "FP64": "<f8"}
"""How numbers lie in binary data."""


_AS_THEY_ARE: Mapping[str, frozenset[type]] = {
    "string": frozenset({str, _NONE}),
    "int64": frozenset({int, _NONE}),
    "timestamp": frozenset({int, _NONE}),
    "float32": frozenset({float, _NONE}),
    "float64": frozenset({float, _NONE}),
}
_INT_BOUND = 2**63


def as_they_are(field: Field) -> frozenset[type]:
    """The types of JSON values that a column takes unchanged; none if it takes no such."""
    return frozenset() if field.shape else _AS_THEY_ARE.get(field.dtype, frozenset())


def plain(kinds: frozenset[type], shape: Sequence[int], data: Sequence[Any] | None) -> bool:
    """Whether JSON data is a column as it stands: the usual case, told in a microsecond."""
    if not data:
        return False
    return (
        shape == [len(data)]
        and kinds.issuperset(map(type, data))
        and (int not in kinds or all(v is None or -_INT_BOUND <= v < _INT_BOUND for v in data))
    )


def check(field: Field, datatype: str, shape: Sequence[int]) -> int:
    """The rows of an input, whose datatype and shape are checked.

    Raises:
        ValueError: they are not those of the column.
    """
    where = f"input {field.name!r}"
    if datatype != field.v2:
        raise wrong(f"{where}, datatype", datatype, field.v2)
    inner = tuple(shape[1:])
    if inner != (1,) or field.shape:
        same = len(inner) == len(field.shape) and all(
            n in (None, m) for n, m in zip(field.shape, inner, strict=True)
        )
        if not shape or not same:
            raise wrong(f"{where}, shape", list(shape), _shapes(field))
    if min(shape) < 1:
        raise wrong(f"{where}, shape", list(shape), "dimensions of 1 or more")
    return shape[0]


def _shapes(field: Field) -> str:
    if not field.shape:
        return "[rows] or [rows, 1]"
    return f"[rows, {', '.join('any' if n is None else str(n) for n in field.shape)}]"


def from_json(field: Field, shape: Sequence[int], data: Sequence[Any]) -> Values:
    """The column that JSON data holds, flat in row-major order or nested as the shape is.

    Raises:
        ValueError: it has another length, or an element of another type.
    """
    size = math.prod(shape)
    flat = _flat(field, data, shape)
    if len(flat) != size:
        raise wrong(f"input {field.name!r}, data", f"{len(flat)} elements", f"{size}")
    kinds, allowed = _ALLOWED[field.v2]
    if not kinds.issuperset(map(type, flat)):
        at = next(i for i, value in enumerate(flat) if type(value) not in kinds)
        raise wrong(f"input {field.name!r}, data[{at}]", flat[at], allowed)
    values = list(flat)
    try:
        if field.shape:
            plain = Field(field.name, field.dtype)
            return column_of(values, plain).reshape(tuple(shape))
        if field.v2 == "INT64":
            np.array([v for v in values if v is not None], np.int64)
        elif field.dtype == "bytes":
            values = [None if v is None else v.encode() for v in values]
        elif field.v2 != "BYTES" and int in set(map(type, values)):
            values = [float(v) if type(v) is int else v for v in values]
    except OverflowError:
        at = _farthest(flat)
        raise wrong(f"input {field.name!r}, data[{at}]", flat[at], allowed) from None
    return values


def _farthest(data: Sequence[Any]) -> int:
    """Where the integer lies that needs the most bits."""
    integers = [i for i, value in enumerate(data) if type(value) is int]
    return max(integers, key=lambda i: data[i] if data[i] >= 0 else ~data[i])


def _flat(field: Field, data: Sequence[Any], shape: Sequence[int]) -> Sequence[Any]:
    for depth, size in enumerate(shape[1:]):
        if not data or type(data[0]) is not list:
            break
        for row in data:
            if type(row) is not list or len(row) != size:
                raise wrong(
                    f"input {field.name!r}, data", row, f"lists of {size} at depth {depth + 1}"
                )
        data = [value for row in data for value in row]
    return data


def from_binary(field: Field, shape: Sequence[int], data: memoryview) -> Values:
    """The column that binary data holds: little-endian, strings behind their 4-byte lengths.

    Raises:
        ValueError: it has another size, or a string is not UTF-8.
    """
    where, size = f"input {field.name!r}, binary data", math.prod(shape)
    if field.v2 == "BYTES":
        values = _strings(where, data, size)
        if field.dtype == "bytes":
            return values
        try:
            return [value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise wrong(where, error.object, "UTF-8") from None
    wire = np.dtype(WIRE[field.v2])
    if len(data) != size * wire.itemsize:
        raise wrong(where, f"{len(data)} bytes", f"{size * wire.itemsize}")
    array = np.frombuffer(data, wire).astype(field.numpy, copy=False)
    return array.reshape(tuple(shape) if field.shape else (shape[0],))


def _strings(where: str, data: memoryview, size: int) -> list[bytes]:
    values: list[bytes] = []
    at = 0
    while at < len(data) and len(values) < size:
        if at + 4 > len(data):
            break
        (length,) = struct.unpack_from("<I", data, at)
        if at + 4 + length > len(data):
            break
        values.append(bytes(data[at + 4 : at + 4 + length]))
        at += 4 + length
    if at != len(data) or len(values) != size:
        raise wrong(where, f"{len(values)} strings in {at} of {len(data)} bytes", f"{size} strings")
    return values


def to_json(array: Array) -> str:
    """The elements of an output, flat."""
    return f"[{','.join(texts(array))}]"


def to_binary(array: Array) -> bytes:
    """The elements of an output as binary data."""
    if array.dtype.kind in "OUS":
        parts = [v.encode() if isinstance(v, str) else v for v in array.reshape(-1).tolist()]
        return b"".join(struct.pack("<I", len(part)) + part for part in parts)
    if not LITTLE or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.tobytes()
