"""Where the values of a ModelInfer request lie, once a request that is declared alike was read."""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drivetrain.core.errors import wrong
from drivetrain.core.schema import Field
from drivetrain.serve.columns import Values
from drivetrain.serve.shared_memory import Place
from drivetrain.serve.tensors import from_binary
from drivetrain.serve.wire import CHUNK, read_chunk, varint

RAW = 7
"""The field ``raw_input_contents``."""
_WIRE: Mapping[str, str] = {"INT64": "<i8", "FP32": "<f4", "FP64": "<f8"}


@dataclass(frozen=True)
class Input:
    """A declared input: its column, its shape, and where its values are if they are not raw."""

    number: int
    field: Field
    shape: tuple[int, ...]
    contents: Any = None
    place: Place | None = None


class Layout:
    """How the values of requests lie that declare the same inputs and outputs.

    Args:
        head: the bytes of the declarations.
        inputs: what they declare, in their order.
        outputs: the positions of the outputs that are asked for.
    """

    def __init__(self, head: bytes, inputs: Sequence[Input], outputs: tuple[int, ...]) -> None:
        self.head = head
        self.rows = inputs[0].shape[0]
        self.outputs = outputs
        self._inputs = inputs
        self._fixed: struct.Struct | None = None
        if any(item.field.v2 == "BYTES" for item in inputs):
            return
        self._scalars = self.rows == 1 and not any(item.field.shape for item in inputs)
        """Whether a struct reads the values too; several rows are arrays over the body."""
        markers: list[bytes] = []
        parts: list[str] = []
        self._arrays: list[tuple[int, np.dtype[Any], int, int, tuple[int, ...]]] = []
        end = 0
        for item in inputs:
            dtype, count = np.dtype(_WIRE[item.field.v2]), math.prod(item.shape)
            size = count * dtype.itemsize
            markers.append(b"\x3a%b" % varint(size))
            parts.append(f"{len(markers[-1])}s{dtype.char if self._scalars else f'{size}x'}")
            shape = item.shape if item.field.shape else (count,)
            self._arrays.append((item.number, dtype, count, end + len(markers[-1]), shape))
            end += len(markers[-1]) + size
        self._fixed = struct.Struct("<" + "".join(parts).replace("l", "q"))
        self._markers = tuple(markers)
        places = {item.number: 2 * place + 1 for place, item in enumerate(inputs)}
        self._places = [places[number] for number in range(len(inputs))]

    def read(self, body: bytes | bytearray, at: int) -> list[Values] | None:
        """The columns, whose values begin at ``at``; None if they do not lie as expected."""
        fixed = self._fixed
        if fixed is None:
            return self._each(body, at)
        if len(body) - at != fixed.size:
            return None
        values = fixed.unpack_from(body, at)
        if self._scalars:
            if values[::2] != self._markers:
                return None
            return [[values[place]] for place in self._places]
        if values != self._markers:
            return None
        columns: list[Values] = [[]] * len(self._arrays)
        for number, dtype, count, start, shape in self._arrays:
            array = np.frombuffer(body, dtype, count, at + start)
            columns[number] = array if len(shape) == 1 else array.reshape(shape)
        return columns

    def _each(self, body: bytes | bytearray, at: int) -> list[Values] | None:
        columns: list[Values] = [[]] * len(self._inputs)
        whole = memoryview(body)
        for item in self._inputs:
            if at >= len(body) or body[at] != RAW << 3 | CHUNK:
                return None
            start, at = read_chunk(body, at + 1)
            columns[item.number] = raw_column(item, body, whole, start, at)
        return columns if at == len(body) else None


def raw_column(
    item: Input, body: bytes | bytearray, whole: memoryview, start: int, end: int
) -> Values:
    """The column in raw contents."""
    field = item.field
    size = end - start - 4
    if (
        field.dtype == "string"
        and item.shape == (1,)
        and size >= 0
        and int.from_bytes(body[start : start + 4], "little") == size
    ):  # one text behind its own length, told without the loop over many
        try:
            return [body[start + 4 : end].decode()]
        except UnicodeDecodeError as error:
            raise wrong(f"input {field.name!r}, binary data", error.object, "UTF-8") from None
    return from_binary(field, item.shape, whole[start:end])
