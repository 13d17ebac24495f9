"""What lies on disk while a plan waits for all rows: they, and values that come out of order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain.core.batch import Array

SPAN = 1 << 19
"""So many consecutive rows have their values in one file, and are held in memory together."""


class Rows:
    """Tables that are written once, and read as often as wanted."""

    def __init__(self, path: Path, label: str) -> None:
        self._path, self._label = path, label
        self._batches: list[int] = []
        self._writer: Any = None

    def add(self, table: pa.Table) -> None:
        """Append a table; all have the same columns.

        Raises:
            OSError: the disk is full.
        """
        with _told(self._label):
            if self._writer is None:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                self._writer = pa.ipc.new_file(str(self._path), table.schema, options=options)
            batches = table.combine_chunks().to_batches()
            for batch in batches:
                self._writer.write_batch(batch)
        self._batches.append(len(batches))

    def close(self) -> None:
        """Close the file, that it may be read or removed."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with _told(self._label):
                writer.close()

    def read(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The tables as they were added, of some columns only if these are named."""
        if not self._batches:
            return
        # not mapped into memory: what a mapping touches counts as memory in use
        with pa.OSFile(str(self._path)) as file:
            names = pa.ipc.open_file(file).schema.names
            chosen = [names.index(name) for name in (names if columns is None else columns)]
            options = pa.ipc.IpcReadOptions(included_fields=sorted(chosen))
            reader = pa.ipc.open_file(file, options=options)
            number = 0
            for count in self._batches:
                batches = [reader.get_batch(number + i) for i in range(count)]
                number += count
                yield pa.Table.from_batches(batches, schema=reader.schema)


class Values:
    """Values of rows that are put in any order, each row once, and taken in order.

    The rows are divided into spans of :data:`SPAN`; what is put is appended to the file of its
    span. Neither writing nor reading touches more than one span at a time.
    """

    def __init__(
        self, folder: Path, forms: Sequence[tuple[str, tuple[int, ...]]], label: str
    ) -> None:
        """Begin without any.

        Args:
            folder: where the files lie.
            forms: the numpy dtype of each column, and the shape of one row.
            label: the step, for errors.
        """
        self._folder, self._label = folder, label
        self._forms = [(np.dtype(dtype), shape) for dtype, shape in forms]
        self._counts: dict[int, list[int]] = {}
        self._held: tuple[int, list[Array]] | None = None

    def put(self, rows: Array, columns: Sequence[Array]) -> None:
        """Values of rows.

        Args:
            rows: int64 ``[n]``, positions from 0.
            columns: ``[n, *shape]`` each.

        Raises:
            OSError: the disk is full.
        """
        if not len(rows):
            return
        spans = rows // SPAN
        first, last = int(spans.min()), int(spans.max())
        if first == last:
            self._append(first, rows, columns)
            return
        small = spans - first
        if last - first < 1 << 16:
            small = small.astype(np.uint16)  # which numpy sorts in time that grows as the rows do
        order = np.argsort(small, kind="stable")
        bounds = np.searchsorted(spans[order], np.arange(first, last + 2))
        for span, (start, stop) in enumerate(pairwise(bounds.tolist()), first):
            if start < stop:
                mine = order[start:stop]
                self._append(span, rows[mine], [column[mine] for column in columns])

    def _append(self, span: int, rows: Array, columns: Sequence[Array]) -> None:
        with _told(self._label), (self._folder / str(span)).open("ab") as file:
            file.write(np.ascontiguousarray(rows - span * SPAN, dtype=np.uint32).data)
            for column, (dtype, _) in zip(columns, self._forms, strict=True):
                file.write(np.ascontiguousarray(column, dtype=dtype).data)
        self._counts.setdefault(span, []).append(len(rows))

    def take(self, start: int, stop: int) -> list[Array]:
        """The columns of rows ``start`` to ``stop``, of which all were put."""
        parts: list[list[Array]] = []
        while start < stop:
            span = start // SPAN
            end = min(stop, (span + 1) * SPAN)
            held = self._span(span)
            parts.append([column[start - span * SPAN : end - span * SPAN] for column in held])
            start = end
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return [np.empty((0, *shape), dtype) for dtype, shape in self._forms]
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    def _span(self, span: int) -> list[Array]:
        if self._held is None or self._held[0] != span:
            self._held = None  # one at a time
            counts = self._counts[span]
            columns = [np.empty((sum(counts), *shape), dtype) for dtype, shape in self._forms]
            with (self._folder / str(span)).open("rb") as file:
                for count in counts:
                    rows = np.fromfile(file, np.uint32, count)
                    for column, (dtype, shape) in zip(columns, self._forms, strict=True):
                        width = int(np.prod(shape))
                        column[rows] = np.fromfile(file, dtype, count * width).reshape(-1, *shape)
            self._held = (span, columns)
        return self._held[1]


@contextmanager
def _told(label: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{label}: its rows do not fit the disk: {error}") from error
