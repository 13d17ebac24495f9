"""Where the values of a ModelInfer request lie, once a request that is declared alike was read."""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drivetrain.core.schema import Field
from drivetrain.serve.execution.columns import Rows, Values
from drivetrain.serve.protocols.tensors import from_binary
from drivetrain.serve.protocols.wire import CHUNK, read_chunk, varint
from drivetrain.serve.workers.shared_memory import Place

RAW = 7
"""The field ``raw_input_contents``."""
_TAG = bytes((RAW << 3 | CHUNK,))
_CODES: Mapping[str, str] = {"INT64": "q", "FP32": "f", "FP64": "d"}


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
        self._scalars = self.rows == 1 and not any(item.field.shape for item in inputs)
        """Whether it is a row of single values, which stays one; more rows become arrays."""
        self._fixed: struct.Struct | None = None
        if not any(item.field.v2 == "BYTES" for item in inputs):
            self._fix()
        places = {item.number: place for place, item in enumerate(inputs)}
        order = [places[number] for number in range(len(inputs))]
        self._order = None if order == sorted(order) else order

    def _fix(self) -> None:
        """One struct for all values, between the tags and lengths that stand before each."""
        markers: list[bytes] = []
        parts: list[str] = []
        self._arrays: list[tuple[int, np.dtype[Any], int, int, tuple[int, ...]]] = []
        end = 0
        for item in self._inputs:
            code, count = _CODES[item.field.v2], math.prod(item.shape)
            size = count * struct.calcsize(f"<{code}")
            markers.append(_TAG + varint(size))
            parts.append(f"{len(markers[-1])}s{code if self._scalars else f'{size}x'}")
            start, end = end + len(markers[-1]), end + len(markers[-1]) + size
            shape = item.shape if item.field.shape else (count,)
            self._arrays.append((item.number, np.dtype(f"<{code}"), count, start, shape))
        self._fixed = struct.Struct("<" + "".join(parts))
        self._markers = tuple(markers)

    def read(self, body: bytes | bytearray, at: int) -> Sequence[Values] | None:
        """The columns, whose values begin at ``at``; None if they do not lie as expected."""
        fixed = self._fixed
        if fixed is None:
            return (self._row if self._scalars else self._each)(body, at)
        if len(body) - at != fixed.size:
            return None
        values = fixed.unpack_from(body, at)
        if self._scalars:
            return self._ordered(values[1::2]) if values[::2] == self._markers else None
        if values != self._markers:
            return None
        columns: list[Values] = [[]] * len(self._arrays)
        for number, dtype, count, start, shape in self._arrays:
            array = np.frombuffer(body, dtype, count, at + start)
            columns[number] = array if len(shape) == 1 else array.reshape(shape)
        return columns

    def _ordered(self, values: tuple[Any, ...]) -> Rows:
        """A row with its values in the order of the columns."""
        order = self._order
        return Rows([values if order is None else tuple([values[place] for place in order])])

    def _row(self, body: bytes | bytearray, at: int) -> Rows | None:
        """A row with texts in it."""
        values: list[Any] = []
        for item in self._inputs:
            if body[at : at + 1] != _TAG:
                return None
            start, at = read_chunk(body, at + 1)
            code = _CODES.get(item.field.v2)
            if code is not None:
                if at - start != struct.calcsize(f"<{code}"):
                    return None
                values += struct.unpack_from(f"<{code}", body, start)
                continue
            size, text = int.from_bytes(body[start : start + 4], "little"), body[start + 4 : at]
            if at - start != 4 + size:
                return None
            try:
                values.append(text.decode() if item.field.dtype == "string" else bytes(text))
            except UnicodeDecodeError:  # whoever reads it carefully says where
                return None
        return self._ordered(tuple(values)) if at == len(body) else None

    def _each(self, body: bytes | bytearray, at: int) -> Sequence[Values] | None:
        """Several rows with texts in them."""
        columns: list[Values] = [[]] * len(self._inputs)
        whole = memoryview(body)
        for item in self._inputs:
            if body[at : at + 1] != _TAG:
                return None
            start, at = read_chunk(body, at + 1)
            columns[item.number] = from_binary(item.field, item.shape, whole[start:at])
        return columns if at == len(body) else None
