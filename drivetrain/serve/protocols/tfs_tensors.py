"""TensorFlow's TensorProto to a bundle's columns, and predictions to TensorProto.

Source: TensorFlow's tensor.proto and ``Tensor::FromProto``: values lie in ``tensor_content``, as
little-endian bytes, or in the repeated field of their type, whose last value stands for all
that are missing.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.core.schema import Dtype, Field
from drivetrain.serve.execution.columns import Values
from drivetrain.serve.protocols.messages_tfs import messages
from drivetrain.serve.protocols.tensors import check
from drivetrain.serve.protocols.wire import chunk, integer

DTYPES: Mapping[str, int] = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    "string": 7,
    "bytes": 7,
    "int64": 9,
    "timestamp": 9,
    "bool": 10,
    "uint16": 17,
    "float16": 19,
    "uint32": 22,
    "uint64": 23,
}
"""TensorFlow's ``DataType`` for each element type of a field."""
STRING = 7
_NAMES: Mapping[int, str] = {
    1: "DT_FLOAT",
    2: "DT_DOUBLE",
    3: "DT_INT32",
    4: "DT_UINT8",
    5: "DT_INT16",
    6: "DT_INT8",
    7: "DT_STRING",
    9: "DT_INT64",
    10: "DT_BOOL",
    17: "DT_UINT16",
    19: "DT_HALF",
    22: "DT_UINT32",
    23: "DT_UINT64",
}
_NUMPY: Mapping[int, str] = {
    number: name for name, number in DTYPES.items() if name not in ("string", "bytes", "timestamp")
}
_WIRE: Mapping[int, np.dtype[Any]] = {
    number: np.dtype(name).newbyteorder("<") for number, name in _NUMPY.items()
}
_VALUES: Mapping[int, str] = {
    1: "float_val",
    2: "double_val",
    3: "int_val",
    4: "int_val",
    5: "int_val",
    6: "int_val",
    7: "string_val",
    9: "int64_val",
    10: "bool_val",
    17: "int_val",
    19: "half_val",
    22: "uint32_val",
    23: "uint64_val",
}
_MOST_REPEATED = 1 << 20
"""Elements that one value may stand for: a request of a few bytes must not take gigabytes."""


def column_of_tensor(field: Field, tensor: Any) -> tuple[Values, int]:
    """The column that a TensorProto holds, and its rows.

    A type that the column does not have is taken where it holds no value that the column's type
    does not: int32 for int64, float for double, but not the other way.

    Raises:
        ValueError: another type, shape or number of elements.
    """
    shape = tuple([dim.size for dim in tensor.tensor_shape.dim])
    if tensor.tensor_shape.unknown_rank:
        raise wrong(f"input {field.name!r}, shape", "an unknown rank", "the dimensions")
    rows = check(field, field.v2, shape)
    kind = tensor.dtype
    if kind not in _taken(field.dtype):
        allowed = ", ".join(_NAMES[number] for number in _taken(field.dtype))
        found = _NAMES.get(kind, f"type {kind}")
        raise wrong(f"input {field.name!r}, dtype", found, allowed)
    size = math.prod(shape)
    if kind == STRING:
        return _texts(field, tensor.string_val, size), rows
    content = tensor.tensor_content
    if content:
        array = _from_content(field, kind, content, size)
    else:
        values = _filled(field, list(getattr(tensor, _VALUES[kind])), size)
        if kind == DTYPES[field.dtype] and not field.shape:
            return values, rows  # of this very type: the batch makes the array
        array = _from_values(field, kind, values)
    array = array.astype(field.numpy, copy=False)
    return array.reshape(shape if field.shape else (rows,)), rows


@cache
def _taken(dtype: Dtype) -> Sequence[int]:
    """The types that a column takes, its own first."""
    own, numpy = DTYPES[dtype], Field("", dtype).numpy
    if own == STRING:
        return (own,)
    return (own, *(n for n, name in _NUMPY.items() if n != own and _exact(name, numpy)))


def _exact(found: str, wanted: str) -> bool:
    """Whether ``wanted`` holds every value of ``found``; numpy calls int64 to float64 safe."""
    before, after = np.dtype(found), np.dtype(wanted)
    if before.kind in "iu" and after.kind == "f":
        return before.itemsize * 8 <= np.finfo(after).nmant
    return np.can_cast(before, after, "safe")


def _texts(field: Field, values: Sequence[bytes], size: int) -> Values:
    found = _filled(field, list(values), size)
    if field.dtype == "bytes":
        return found
    try:
        return [value.decode() for value in found]
    except UnicodeDecodeError as error:
        raise wrong(f"input {field.name!r}, string_val", error.object, "UTF-8") from None


def _from_content(field: Field, kind: int, content: bytes, size: int) -> Array:
    dtype = _WIRE[kind]
    if len(content) != size * dtype.itemsize:
        where = f"input {field.name!r}, tensor_content"
        raise wrong(where, f"{len(content)} bytes", f"{size * dtype.itemsize}")
    return np.frombuffer(content, dtype)


def _from_values(field: Field, kind: int, values: list[Any]) -> Array:
    try:
        if kind == DTYPES["float16"]:  # the bits, in integers
            return np.array(values, np.uint16).view(np.float16)
        return np.array(values, _WIRE[kind])
    except OverflowError:
        where = f"input {field.name!r}, {_VALUES[kind]}"
        raise wrong(where, "a number too large", f"numbers of {_NAMES[kind]}") from None


def _filled(field: Field, values: list[Any], size: int) -> list[Any]:
    if len(values) == size:
        return values
    if not values or len(values) > size or size > _MOST_REPEATED:
        raise wrong(f"input {field.name!r}", f"{len(values)} values", f"{size}")
    return values + values[-1:] * (size - len(values))


class TensorWriter:
    """Writes one output as TensorProto, its values in the repeated field of their type.

    TensorFlow Serving answers so by default, and clients read ``float_val``.
    """

    def __init__(self, field: Field) -> None:
        self._dtype = DTYPES[field.dtype]
        self._kind = _VALUES[self._dtype]
        self._packed = {1: (5, "<f4"), 2: (6, "<f8")}.get(self._dtype)

    def write(self, array: Array) -> bytes:
        """The message."""
        dims = b"".join(chunk(2, integer(1, size)) for size in array.shape)
        return integer(1, self._dtype) + chunk(2, dims) + self._values(array)

    def _values(self, array: Array) -> bytes:
        if self._packed is not None:
            number, dtype = self._packed
            return chunk(number, np.ascontiguousarray(array, dtype).tobytes())
        if self._dtype == DTYPES["float16"]:
            array = array.view(np.uint16)
        values = array.reshape(-1).tolist()
        if self._dtype == STRING:
            values = [v.encode() if isinstance(v, str) else v for v in values]
        return messages()["Tensor"](**{self._kind: values}).SerializeToString()
