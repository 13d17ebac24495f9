"""Named initializers out of a serialized ONNX model, read without onnx."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.core.schema import ONNX_TYPE

_GRAPH = 7
"""The field of a ``ModelProto`` that holds its ``GraphProto``; below, fields of that."""
_INITIALIZER, _INPUT = 5, 11
_NAME_OF_VALUE = 1
"""Of a ``ValueInfoProto``. What follows are fields of a ``TensorProto``."""
_DIMS, _TYPE, _STRINGS, _NAME, _RAW, _LOCATION = 1, 2, 6, 8, 9, 14
_STRING = 8
_NUMPY: Mapping[int, np.dtype[np.generic]] = {
    number: np.dtype(name).newbyteorder("<")
    for name, number in ONNX_TYPE.items()
    if name not in ("string", "timestamp")
}
_FLOATS = {4: np.dtype("<f4"), 10: np.dtype("<f8")}
"""Fields of numbers that lie as they are."""
_VARINTS = (5, 7, 11)
"""Fields of whole numbers of varied length: ``int32_data``, ``int64_data``, ``uint64_data``."""

Values = int | memoryview
"""A field's value: a number, or the bytes of what has a length."""


@dataclass(frozen=True, eq=False)
class Initializers:
    """Some of a graph's initializers.

    Attributes:
        arrays: by the name that was asked for; strings are objects. They are copies.
        names: what each is called in the graph: ``join1/x`` where it was joined behind another.
        live: which of them are inputs of the graph as well, so that a run may be fed others.
    """

    arrays: Mapping[str, Array]
    names: Mapping[str, str]
    live: frozenset[str]


def initializers(model: bytes, wanted: Iterable[str]) -> Initializers:
    """The initializers of such names, also behind the prefix of a joined graph.

    Args:
        model: a serialized ``ModelProto``, its weights inside.
        wanted: names; what the graph lacks the result lacks too.

    Raises:
        ValueError: it is no such model, or holds a tensor of a type that is not supported.
    """
    short = {name: name for name in wanted}
    arrays: dict[str, Array] = {}
    names: dict[str, str] = {}
    inputs: set[str] = set()
    for _, graph in _fields(memoryview(model), {_GRAPH}):
        for number, part in _fields(_bytes(graph), {_INITIALIZER, _INPUT}):
            if number == _INPUT:
                inputs |= {_text(_bytes(v)) for _, v in _fields(_bytes(part), {_NAME_OF_VALUE})}
                continue
            name = _name(_bytes(part))
            asked = next((w for w in short if name == w or name.endswith(f"/{w}")), None)
            if asked is not None:
                arrays[asked], names[asked] = _array(_bytes(part), name), name
    live = frozenset(asked for asked, name in names.items() if name in inputs)
    return Initializers(arrays, names, live)


def _name(tensor: memoryview) -> str:
    name = ""
    for _, value in _fields(tensor, {_NAME}):
        name = _text(_bytes(value))
    return name


def _array(tensor: memoryview, name: str) -> Array:
    """What :func:`onnx.numpy_helper.to_array` gives."""
    shape: list[int] = []
    kind = 0
    parts: dict[int, list[Values]] = {}
    for number, value in _fields(tensor, None):
        if number == _DIMS:
            shape += _varints([value], signed=True)
        elif number in (_TYPE, _LOCATION):
            parts[number] = [value]
        else:
            parts.setdefault(number, []).append(value)
        if number == _TYPE:
            kind = _whole(value)
    if parts.get(_LOCATION, [0])[-1] == 1:
        raise wrong(f"initializer {name!r}", "data in another file", "weights inside of the graph")
    if kind == _STRING:
        texts = [_text(_bytes(value)) for value in parts.get(_STRINGS, [])]
        flat = np.array([*texts, None], object)[:-1]
    elif kind in _NUMPY:
        flat = _numbers(parts, _NUMPY[kind])
    else:
        raise wrong(f"initializer {name!r}", f"type {kind}", ", ".join(ONNX_TYPE))
    if flat.size != int(np.prod(shape, dtype=np.int64)):
        raise wrong(f"initializer {name!r}", f"{flat.size} values", f"those of shape {shape}")
    return flat.reshape(shape)


def _numbers(parts: Mapping[int, list[Values]], dtype: np.dtype[np.generic]) -> Array:
    """The numbers of a tensor in their own type, in this machine's order of bytes."""
    native = dtype.newbyteorder("=")
    if _RAW in parts:
        return np.frombuffer(_bytes(parts[_RAW][-1]), dtype).astype(native)
    for number, inside in _FLOATS.items():
        if number in parts:
            pieces = [np.frombuffer(_bytes(value), inside) for value in parts[number]]
            return np.concatenate(pieces).astype(native)
    for number in _VARINTS:
        if number in parts:
            found = _varints(parts[number], signed=number != 11)
            if native == np.dtype(np.float16):  # which travels as the bits of a uint16
                return np.array(found, np.uint16).view(np.float16)
            return np.array(found, np.uint64 if number == 11 else np.int64).astype(native)
    return np.zeros(0, native)


def _varints(values: list[Values], *, signed: bool) -> list[int]:
    """Numbers that come one by one or packed."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            found.append(number)
    return [n - 2**64 if signed and n >= 2**63 else n for n in found]


def _fields(message: memoryview, wanted: set[int] | None) -> Iterator[tuple[int, Values]]:
    """The fields of a protobuf message in order; None wants all.

    Raises:
        ValueError: it is cut, or no such message.
    """
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
        else:
            if kind == 2:
                size, at = _varint(message, at)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                raise wrong("an ONNX model", f"wire type {kind}", "0, 1, 2 or 5")
            if at + size > end:
                raise wrong("an ONNX model", "cut bytes", "all of it")
            value, at = message[at : at + size], at + size
        if wanted is None or number in wanted:
            yield number, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at
    raise wrong("an ONNX model", "cut bytes", "all of it")


def _bytes(value: Values) -> memoryview:
    if isinstance(value, int):
        raise wrong("an ONNX model", "a number", "bytes that have a length")
    return value


def _whole(value: Values) -> int:
    if not isinstance(value, int):
        raise wrong("an ONNX model", "bytes", "a number")
    return value


def _text(value: memoryview) -> str:
    return str(value, "utf-8")
