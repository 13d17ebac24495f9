"""Tensors of a split on disk: one flat file for each, rows in order, read in slices."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import numpy as np

from drivetrain.core.batch import Array, Batch
from drivetrain.core.durable import directory
from drivetrain.core.schema import FeatureSchema, Field, Schema

META = "blocks.json"
FORMAT = 1


@dataclass(frozen=True)
class Block:
    """One tensor as it lies in a file: little-endian elements, rows first, nothing else.

    Attributes:
        name: the tensor's name.
        stored: the numpy dtype in the file. Indices are stored in the narrowest unsigned type
            that holds their cardinality: they are gathered faster so, and widened in order.
        given: the numpy dtype that a reader gets.
        shape: the shape of one row.
    """

    name: str
    stored: str
    given: str
    shape: tuple[int, ...]

    @property
    def file(self) -> str:
        """The file's name: a column may be called what no file system takes."""
        return f"{quote(self.name, safe='')}.{self.stored}"

    @property
    def little(self) -> "np.dtype[Any]":
        """The dtype in the file with its byte order."""
        return np.dtype(self.stored).newbyteorder("<")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the file."""
        return prod(self.shape) * self.little.itemsize


def blocks_of(features: FeatureSchema, targets: Schema) -> tuple[Block, ...]:
    """How the tensors of ``features`` and the targets are stored."""
    cardinality = {field.name: field.cardinality for field in features.of("bag")}
    cardinality["index"] = max(features.cardinalities, default=0)
    return tuple(
        _block(field, cardinality.get(field.name, 0)) for field in features.tensors
    ) + tuple(_block(field, 0) for field in targets)


def _block(field: Field, cardinality: int) -> Block:
    shape = cast("tuple[int, ...]", field.shape)
    narrow = np.min_scalar_type(cardinality - 1).name if cardinality else field.numpy
    return Block(field.name, narrow, field.numpy, shape)


class Writer:
    """Appends batches to the files of a split."""

    def __init__(self, path: Path, blocks: Sequence[Block], files: ExitStack) -> None:
        self._files = [
            (block, files.enter_context((path / block.file).open("wb", buffering=0)))
            for block in blocks
        ]
        self.rows = 0

    def append(self, batch: Batch) -> None:
        """Add the rows of a batch that has a column for each block."""
        for block, file in self._files:
            column = batch[block.name]
            assert column.shape[1:] == block.shape, f"{block.name}: {column.shape}, {block.shape}"
            narrow = np.ascontiguousarray(column, block.little)
            if block.stored != block.given:
                assert np.array_equal(narrow, column), f"{block.name} exceeds its cardinality"
            left = narrow.data.cast("B") if narrow.size else b""
            while left:
                left = left[file.write(left) :]
        self.rows += len(batch)


@contextmanager
def fill(path: Path, blocks: Sequence[Block]) -> Iterator[Writer]:
    """Write the files of a split to the directory ``path``, whole or not at all.

    Raises:
        OSError: no space, no permission; nothing is then left of it.
    """
    with directory(path) as temporary:
        with ExitStack() as files:
            writer = Writer(temporary, blocks, files)
            yield writer
        meta = {"format": FORMAT, "rows": writer.rows, "blocks": [vars(block) for block in blocks]}
        (temporary / META).write_text(json.dumps(meta))


@dataclass(frozen=True)
class Blocks:
    """The files of a split, to be read in slices; reads are plain, so that memory stays bounded.

    Attributes:
        path: their directory.
        rows: how many there are.
        blocks: the tensors.
    """

    path: Path
    rows: int
    blocks: tuple[Block, ...]

    @classmethod
    def open(cls, path: Path, blocks: Sequence[Block]) -> "Blocks":
        """The split that :func:`fill` wrote to ``path``.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it holds other tensors, or a file has another size than it was given.
        """
        meta = json.loads((path / META).read_text())
        found = [{**block, "shape": tuple(block["shape"])} for block in meta["blocks"]]
        if meta["format"] != FORMAT or found != [vars(block) for block in blocks]:
            raise ValueError(f"{path} holds other tensors than {[b.name for b in blocks]}")
        for block in blocks:
            size = (path / block.file).stat().st_size
            if size != meta["rows"] * block.row_bytes:
                raise ValueError(
                    f"{path / block.file}: found {size} bytes, allowed: "
                    f"{meta['rows'] * block.row_bytes}; it is damaged: delete {path}."
                )
        return cls(path, meta["rows"], tuple(blocks))

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row over all tensors, as a reader gets them."""
        return sum(prod(b.shape) * np.dtype(b.given).itemsize for b in self.blocks)

    def read(
        self, spans: Sequence[tuple[int, int]], rows: Array | None = None
    ) -> Mapping[str, Array]:
        """The rows of some spans ``(start, stop)``, one after another, in fresh arrays.

        Args:
            spans: of the split's rows.
            rows: positions among those of the spans; None takes all in order.
        """
        return {block.name: self._read(block, spans, rows) for block in self.blocks}

    def take(self, rows: Array) -> Mapping[str, Array]:
        """Single rows by number, in fresh arrays.

        The files are mapped, since a read for each row would cost more than the rows: what the
        pages take is the system's to give away again.

        Args:
            rows: int64 ``[n]``, from 0 to below :attr:`rows`.
        """
        return {
            block.name: np.take(self._mapped[block.name], rows, axis=0).astype(
                block.given, copy=False
            )
            for block in self.blocks
        }

    @cached_property
    def _mapped(self) -> Mapping[str, Array]:
        mapped: dict[str, Array] = {}
        for block in self.blocks:
            shape = (self.rows, *block.shape)
            empty = not prod(shape)  # which can't be mapped
            mapped[block.name] = (
                np.empty(shape, block.little)
                if empty
                else np.asarray(np.memmap(self.path / block.file, block.little, "r", 0, shape))
            )
        return mapped

    def _read(self, block: Block, spans: Sequence[tuple[int, int]], rows: Array | None) -> Array:
        length = sum(stop - start for start, stop in spans)
        found = np.empty((length, *block.shape), block.little)
        view = found.data.cast("B") if found.size else memoryview(b"")
        with (self.path / block.file).open("rb", buffering=0) as file:
            at = 0
            for start, stop in spans:
                file.seek(start * block.row_bytes)
                end = at + (stop - start) * block.row_bytes
                while at < end:
                    got = file.readinto(view[at:end])
                    if not got:
                        raise ValueError(
                            f"{self.path / block.file} ends early: delete {self.path}."
                        )
                    at += got
        if rows is not None:
            found = np.take(found, rows, axis=0)
        return found.astype(block.given, copy=False)
