"""The best items for those who ask a learner, found before the run of its graph."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.in_bytes import InBytes
from drivetrain.core.learner_tensors import FOUND, FOUND_SCORES, ITEMS

Find = Callable[[Mapping[str, Array]], dict[str, Array]]
"""Gives what a graph is fed in its own search's stead; on any thread. It is given the items, by the
graph's name for them, and :attr:`Finder.arrays`: these or a copy, all of one moment."""


class Finder:
    """Finds what a graph would find that goes through all items, sooner: in 8 bits, and with the
    interpreter let go of. Scores are sums in float32 in another order than the graph's.

    Args:
        items: float32 ``[places, factors + 1]``, finite; read again by :meth:`place`.
        taken: how many places hold an item; the others are found once they are placed.
        beyond: the place that means none.
        k: how many the graph takes of each.
        names: what tensors are called in the graph, by their short names.
    """

    def __init__(
        self, items: Array, taken: int, beyond: int, k: int, names: Mapping[str, str]
    ) -> None:
        self._index = InBytes(items, taken)
        self._taken = taken
        self._beyond = beyond
        self._k = k
        self._names = names

    @property
    def arrays(self) -> Mapping[str, Array]:
        """What a search reads beside the items, as :attr:`InBytes.arrays`."""
        return self._index.arrays

    def place(self, places: Array, taken: int) -> dict[str, Array]:
        """Have items found as they are now; the rows of :attr:`arrays` that changed.

        Args:
            places: of the items.
            taken: from this place on none is.
        """
        self._taken = taken
        return self._index.place(places, taken)

    def find(self, vectors: Array, never: Sequence[Array]) -> Find:
        """What finds the best items of the moment that :meth:`place` was called last.

        Args:
            vectors: of those who ask, float32 ``[rows, factors + 1]``.
            never: ascending int32 places for each row that are left out.
        """
        return partial(self._find, vectors, never, self._taken)

    def _find(
        self, vectors: Array, never: Sequence[Array], taken: int, arrays: Mapping[str, Array]
    ) -> dict[str, Array]:
        rows, k, names = len(vectors), self._k, self._names
        if not rows or taken < k:
            return {}
        scores = np.full((rows, k), -np.inf, np.float32)
        places = np.full((rows, k), self._beyond, np.int32)
        items = arrays[names[ITEMS]]
        self._index.search(
            *(vectors, k, scores, places), never=never, arrays=arrays, rows=items, items=taken
        )
        return {names[FOUND]: places.astype(np.int64), names[FOUND_SCORES]: scores}
