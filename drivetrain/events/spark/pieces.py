"""The rows of a spine in pieces that executors read side by side, each knowing its place."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drivetrain.core.schema import Schema
from drivetrain.events.duckdb import ROW
from drivetrain.events.files import Files, Parquet
from drivetrain.events.reading.read import File, chunks_of, files_of, read_file
from drivetrain.events.spark.held import Held, read_held
from drivetrain.events.spark.rows import named, over, struct
from drivetrain.events.table import Leaf

PIECE_ROWS = 1 << 18
"""A piece of Parquet has about as many rows, if its row groups allow."""

PLACE = 40
"""A row's number is that of its piece, shifted by so many bits, and its place in the piece."""

CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class Groups:
    """Consecutive row groups of one Parquet file."""

    file: File
    first: int
    last: int


@dataclass(frozen=True)
class Piece:
    """What one task reads: row groups, whole files, held ones, or all that a leaf has (None)."""

    parts: Sequence[Groups | File | str] | None


def pieces_of(leaf: Leaf) -> list[Piece]:
    """A leaf in pieces whose order is that of its rows; reads the footers of Parquet files only.

    Raises:
        OSError: a file is absent or may not be read.
        ValueError: a Parquet file is damaged.
    """
    if isinstance(leaf, Held):
        return [Piece([file]) for file in leaf.files] or [Piece([])]
    if not isinstance(leaf, Files):
        return [Piece(None)]
    files = files_of(leaf)
    if not isinstance(leaf, Parquet):
        return [Piece([file]) for file in files]
    found: list[Piece] = []
    parts: list[Groups | File | str] = []
    held = 0
    for file in files:
        with file.open() as opened:
            metadata = pq.ParquetFile(opened).metadata
        first = 0
        for group in range(metadata.num_row_groups):
            held += metadata.row_group(group).num_rows
            if held >= PIECE_ROWS:
                found.append(Piece([*parts, Groups(file, first, group)]))
                parts, held, first = [], 0, group + 1
        if first < metadata.num_row_groups:
            parts.append(Groups(file, first, metadata.num_row_groups - 1))
    return [*found, Piece(parts)] if parts or not found else found


def spine(spark: Any, leaf: Leaf, schema: Schema) -> tuple[Any, int]:
    """The rows of a leaf as a frame with ``ROW``, a partition for each piece, and how many.

    Raises:
        OSError, ValueError: as :func:`pieces_of`.
    """
    pieces = pieces_of(leaf)
    numbers = spark.range(0, len(pieces), 1, len(pieces))
    reading: Callable[[Iterator[pa.Table]], Iterator[pa.Table]] = partial(
        _read, leaf, pieces, schema
    )
    return over(numbers, reading, struct(schema, ROW)), len(pieces)


def _read(
    leaf: Leaf, pieces: Sequence[Piece], schema: Schema, numbers: Iterator[pa.Table]
) -> Iterator[pa.Table]:
    for table in numbers:
        for number in table.column(0).to_pylist():
            start = number << PLACE
            for chunk in chunks(leaf, pieces[number], schema, CHUNK_ROWS):
                stop = start + len(chunk)
                yield named(chunk, pa.array(np.arange(start, stop, dtype=np.int64)))
                start = stop


def chunks(leaf: Leaf, piece: Piece, schema: Schema, rows: int) -> Iterator[pa.Table]:
    """The rows of a piece, in order.

    Args:
        leaf: that it is a piece of.
        piece: one of :func:`pieces_of`.
        schema: which columns, and their types.
        rows: at most so many rows a table.

    Raises:
        OSError, ValueError: as ``Leaf.chunks``.
    """
    if piece.parts is None:
        return leaf.chunks(schema, rows)
    return chunks_of(_tables(leaf, piece.parts, schema, rows), rows)


def _tables(
    leaf: Leaf, parts: Sequence[Groups | File | str], schema: Schema, rows: int
) -> Iterator[pa.Table]:
    for part in parts:
        if isinstance(part, str):
            yield from read_held(part, schema, rows)
            continue
        assert isinstance(leaf, Files)
        if isinstance(part, File):
            yield from read_file(part, leaf, schema, rows)
        else:
            groups = range(part.first, part.last + 1)
            yield from read_file(part.file, leaf, schema, rows, groups)
