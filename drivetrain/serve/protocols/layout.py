"""Where the tensors of a binary V2 request lie: read of its JSON once, for all that repeat it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from drivetrain.core.schema import Field
from drivetrain.serve.execution.columns import Values
from drivetrain.serve.execution.packed import Form, Packed
from drivetrain.serve.protocols.tensors import WIRE

_CACHED = 32
_CACHED_BYTES = 16 << 10


class Tensor(Protocol):
    """An input as the JSON names it."""

    name: str
    data: list[Any] | None
    parameters: dict[str, Any] | None


@dataclass(frozen=True)
class Layout:
    """What a checked JSON says of the bytes behind it.

    Attributes:
        rows: of every input.
        size: how many bytes there are.
        blocks: inputs of one type that lie together: type on the wire, type of the column, first
            byte, and the positions of their columns.
        outputs: of each output its position, and whether it is binary.
        timeout: seconds, None if it says none.
        form: as which the bytes lie just as a graph reads them; None if they do not.
    """

    rows: int
    size: int
    blocks: tuple[tuple[str, str, int, tuple[int, ...]], ...]
    outputs: list[tuple[int, Any]]
    timeout: float | None
    form: Form | None = None

    @classmethod
    def of(
        cls,
        inputs: Sequence[Tensor],
        fields: Mapping[str, tuple[int, Field]],
        rows: int,
        outputs: list[tuple[int, Any]],
        timeout: float | None,
        form: Form | None = None,
    ) -> "Layout | None":
        """The layout of a checked request, None if not all its inputs are binary numbers."""
        blocks: list[tuple[str, str, int, tuple[int, ...]]] = []
        start = 0
        for tensor in inputs:
            number, field = fields[tensor.name]
            parameters = tensor.parameters or {}
            wire = WIRE.get(field.v2)
            if wire is None or field.shape or parameters.keys() != {"binary_data_size"}:
                return None
            first, numbers = start, (number,)
            if blocks and blocks[-1][:2] == (wire, field.numpy):
                *_, first, before = blocks.pop()
                numbers = (*before, number)
            blocks.append((wire, field.numpy, first, numbers))
            start += parameters["binary_data_size"]
        found = [number for *_, numbers in blocks for number in numbers]
        lies = form is not None and found == [n for _, group in form.groups for n in group]
        as_read = form if lies and sys.byteorder == "little" else None
        return cls(rows, start, tuple(blocks), outputs, timeout, as_read)

    def columns(self, binary: memoryview) -> Sequence[Values]:
        """The columns in ``size`` bytes; they are views."""
        if self.form is not None:
            return Packed(self.form, binary, self.rows)
        found: dict[int, Values] = {}
        for wire, dtype, start, numbers in self.blocks:
            flat = np.frombuffer(binary, wire, self.rows * len(numbers), start)
            block = flat.astype(dtype, copy=False).reshape(len(numbers), self.rows)
            found.update(zip(numbers, block, strict=True))
        return [found[number] for number in range(len(found))]


class Layouts:
    """The layouts that were met lately, by the bytes of the JSON, which alone say what it means."""

    def __init__(self) -> None:
        self._found: dict[bytes, Layout] = {}

    def find(self, text: bytes, binary: memoryview) -> Layout | None:
        """The layout of a request with this JSON and so many bytes behind it."""
        layout = self._found.get(text)
        return layout if layout is not None and layout.size == len(binary) else None

    def keep(self, text: bytes, layout: Layout | None) -> None:
        """Know it when it comes again."""
        if layout is None or len(text) > _CACHED_BYTES:
            return
        if len(self._found) >= _CACHED:
            self._found.clear()
        self._found[text] = layout
