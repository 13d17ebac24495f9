"""The best items for those who ask a learner, found before the run of its graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.in_bytes import InBytes
from drivetrain.core.learner_tensors import FOUND, FOUND_SCORES, ITEMS


@dataclass(frozen=True)
class Wanted:
    """Who asks, of one moment.

    Attributes:
        vectors: float32 ``[rows, factors + 1]``.
        never: ascending int32 places for each row that are left out.
        items: how many places are taken.
    """

    vectors: Array
    never: Sequence[Array]
    items: int


class Finder:
    """Finds what a graph would find that goes through all items, sooner: in 8 bits, and with the
    interpreter let go of. Scores are sums in float32 in another order than the graph's.

    Args:
        items: float32 ``[places, factors + 1]``, finite; read again by :meth:`place`.
        taken: how many places hold an item; the others are found once they are placed.
        beyond: the place that means none.
        found: int64 ``[1, k]``, as the graph has :data:`~drivetrain.core.learner_tensors.FOUND`.
        names: what tensors are called in the graph, by their short names.
    """

    def __init__(
        self, items: Array, taken: int, beyond: int, found: Array, names: Mapping[str, str]
    ) -> None:
        self._index = InBytes(items, taken)
        self._beyond = beyond
        self._k = found.shape[1]
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
        return self._index.place(places, taken)

    def find(self, wanted: Wanted, side: Mapping[str, Array]) -> dict[str, Array]:
        """What the graph is fed in its own search's stead; on any thread.

        Args:
            wanted: who asks.
            side: the arrays and the items of the same moment, the items by the graph's name.
        """
        rows, k = len(wanted.vectors), self._k
        if not rows or wanted.items < k:
            return {}
        scores = np.full((rows, k), -np.inf, np.float32)
        places = np.full((rows, k), self._beyond, np.int32)
        index = self._index
        index.search(
            wanted.vectors,
            *(k, scores, places),
            never=wanted.never,
            arrays=side,
            rows=side[self._names[ITEMS]],
            items=wanted.items,
        )
        return {self._names[FOUND]: places.astype(np.int64), self._names[FOUND_SCORES]: scores}
