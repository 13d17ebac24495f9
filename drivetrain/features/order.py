"""The order of a split's rows: windows of shuffled chunks, and the slice that a shard reads.

A full shuffle of rows on disk costs a seek for each. Here the chunks of a split are put in random
order, several of them make a window, and the rows of a window are put in random order in memory:
what is read is contiguous, and a split that fits in one window is shuffled uniformly.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.seams import Order, Shard

CHUNKS = 16
"""Chunks in a window."""
WINDOW_BYTES = 32 << 20
"""About how much a window takes in memory."""


@dataclass(frozen=True)
class Part:
    """Rows to be read at once.

    Attributes:
        spans: ``(start, stop)`` of the split's rows.
        rows: positions among those of the spans, in the order they are given out; None for all
            as they lie.
    """

    spans: tuple[tuple[int, int], ...]
    rows: Array | None


@dataclass(frozen=True)
class Windows:
    """All rows of a split, each once, in a repeatable order.

    Attributes:
        rows: of the split.
        chunk: rows of a chunk; the last may be shorter.
        order: the shuffle; None keeps the rows as they lie.
    """

    rows: int
    chunk: int
    order: Order | None

    @classmethod
    def of(cls, rows: int, row_bytes: int, order: Order | None) -> "Windows":
        """Windows of about ``WINDOW_BYTES``."""
        return cls(rows, max(1, WINDOW_BYTES // (CHUNKS * max(1, row_bytes))), order)

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        """What to read for the positions ``start`` to ``stop`` of the order; other windows are
        neither read nor shuffled."""
        begin = 0
        for number, spans in enumerate(self._spans):
            end = begin + sum(b - a for a, b in spans)
            low, high = max(start, begin) - begin, min(stop, end) - begin
            if low < high:
                yield self._part(number, spans, low, high)
            begin = end

    def _part(self, number: int, spans: tuple[tuple[int, int], ...], low: int, high: int) -> Part:
        if self.order is None:
            first = spans[0][0]
            return Part(((first + low, first + high),), None)
        length = sum(b - a for a, b in spans)
        return Part(spans, generator(self.order, number + 1).permutation(length)[low:high])

    @cached_property
    def _spans(self) -> list[tuple[tuple[int, int], ...]]:
        """The chunks of each window."""
        chunks = -(-self.rows // self.chunk)
        if self.order is None:
            step = self.chunk * CHUNKS
            return [((a, min(a + step, self.rows)),) for a in range(0, self.rows, step)]
        numbers = generator(self.order, 0).permutation(chunks).tolist()
        spans = [(n * self.chunk, min((n + 1) * self.chunk, self.rows)) for n in numbers]
        return [tuple(spans[a : a + CHUNKS]) for a in range(0, chunks, CHUNKS)]


def generator(order: Order, stream: int) -> np.random.Generator:
    """A generator of its own for each window, so that one can be skipped."""
    words = (order.seed % 2**64, order.epoch % 2**64, stream)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def slice_of(shard: Shard, rows: int) -> tuple[int, int]:
    """The positions of the order that a shard reads: contiguous, and equal to within one row.

    The first ``rows % count`` shards have one row more. So all shards have equally many batches
    of a size, unless ``rows // count`` is a multiple of the size and some rows are left: then
    these first shards have one batch more, of a single row.
    """
    each, more = divmod(rows, shard.count)
    start = shard.index * each + min(shard.index, more)
    return start, start + each + (shard.index < more)
