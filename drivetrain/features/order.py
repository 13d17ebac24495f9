"""The order of a split's rows: windows of shuffled chunks, and the turns that a shard takes in it.

A full shuffle of rows on disk costs a seek for each. Here the chunks of a split are put in random
order, several of them make a window, and the rows of a window are put in random order in memory:
what is read is contiguous, and a split that fits in one window is shuffled uniformly.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
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

    def parts(self, ranges: Iterable[tuple[int, int]]) -> Iterator[Part]:
        """What to read for some ranges of positions of the order, which ascend; a window that
        none of them touches is neither read nor shuffled."""
        waiting = deque(ranges)
        begin = 0
        for number, spans in enumerate(self._spans):
            end = begin + sum(b - a for a, b in spans)
            inside: list[tuple[int, int]] = []
            while waiting and waiting[0][0] < end:
                low, high = waiting.popleft()
                inside.append((low - begin, min(high, end) - begin))
                if high > end:
                    waiting.appendleft((end, high))
            if inside:
                yield self._part(number, spans, inside)
            begin = end

    def _part(
        self, number: int, spans: tuple[tuple[int, int], ...], inside: Sequence[tuple[int, int]]
    ) -> Part:
        if self.order is None:
            first = spans[0][0]
            return Part(tuple((first + low, first + high) for low, high in inside), None)
        length = sum(b - a for a, b in spans)
        rows = generator(self.order, number + 1).permutation(length)
        return Part(spans, np.concatenate([rows[low:high] for low, high in inside]))

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


def turns(shard: Shard, size: int, start: int, rows: int) -> Iterator[tuple[int, int]]:
    """The positions of the order that a shard reads: ``(low, high)`` of each of its batches.

    The shards share each batch of the order, equally to within a row. So the rows of a batch are
    the same whatever the number of shards; what all have read after some batches is the beginning
    of the order, and a training that stops there goes on with any other number of shards. All
    have equally many turns; of a last batch with fewer rows than shards some get none.

    Args:
        shard: whose positions.
        size: rows a batch, of all shards together.
        start: the first position that anybody reads.
        rows: of the split.
    """
    for first in range(start, rows, size):
        each, more = divmod(min(size, rows - first), shard.count)
        low = first + shard.index * each + min(shard.index, more)
        yield low, low + each + (shard.index < more)
