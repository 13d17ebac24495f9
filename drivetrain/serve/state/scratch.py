"""One track into which the state of some keys is put for a moment."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from drivetrain.core.batch import Array, Batch
from drivetrain.core.tracks import Tracks
from drivetrain.serve.execution.filling import Kept
from drivetrain.serve.state.posts import Post


class Scratch:
    """A track that holds nothing between two uses.

    Args:
        kept: what it is of.
    """

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.tracks = Tracks(kept.windows, kept.schema, threads=1)
        self._held = np.empty((0, 2), np.uint64)
        self._anybody = _anybody(kept)

    def takes(self, batch: Batch) -> bool:
        """Whether it is fed by rows with these columns."""
        return all(name in batch for name in self.kept.columns)

    def hashes_of(self, batches: Sequence[Batch]) -> Array:
        """The keys of rows, each once, in the order of their bytes: uint64 ``[keys, 2]``."""
        found = [self.tracks.hash(0, batch) for batch in batches]
        if not found:
            return np.empty((0, 2), np.uint64)
        keys = np.unique(np.concatenate(found), axis=0)
        return np.ascontiguousarray(keys[keys.any(axis=1)])

    def fed_by(self, posts: Sequence[Post]) -> Array:
        """The keys that some posts have observed."""
        return self.hashes_of([p for post in posts for p in post.pieces if self.takes(p)])

    def load(self, hashes: Array, states: Sequence[bytes | None]) -> None:
        """Hold the keys with these states; None or nothing of a key that has none.

        Raises:
            ValueError: a state is none of this track.
        """
        self._held = hashes
        there = [number for number, state in enumerate(states) if state]
        self.tracks.load_keys(0, hashes[there], [states[n] or b"" for n in there])

    def mark(self, watermark: int) -> None:
        """Take what comes later than is allowed behind this as late, until :meth:`renew`; before
        a key is held."""
        row = Batch(self._anybody)
        row = row.with_columns({self.kept.track.known: np.array([watermark])})
        self.tracks.observe(row)
        self.tracks.drop_keys(0, self.tracks.hash(0, row))

    def states(self, hashes: Array) -> list[bytes]:
        """The state of each key, empty of one that has none."""
        return self.tracks.dump_keys(0, hashes)

    def drop(self) -> None:
        """Hold no key any more."""
        self.tracks.drop_keys(0, self._held)

    def renew(self) -> None:
        """Hold nothing, and know of no watermark."""
        self.tracks = Tracks(self.kept.windows, self.kept.schema, threads=1)


def _anybody(kept: Kept) -> dict[str, Array]:
    """A row that a track takes; nobody asks for what it tells."""
    values: dict[str, Any] = {"string": "anybody", "bytes": b"anybody"}
    return {
        field.name: np.array([values.get(field.dtype, 1)], field.numpy)
        for field in kept.schema.select(kept.columns)
    }
