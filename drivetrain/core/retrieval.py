"""Exact search: of all items those whose vectors have the largest dot products with a query's."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from drivetrain.core import in_bytes
from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.core.in_bytes import LANES, InBytes

TOGETHER = 960
"""Queries that go through the items together: a whole number of groups of 12."""


class Retrieval(Protocol):
    """Finds items by their vectors, exactly or nearly so."""

    def search(self, queries: Array, k: int) -> tuple[Array, Array]:
        """The best ``k`` items of each query.

        Args:
            queries: float32 ``[queries, width]``.
            k: from 1 to the number of items.

        Returns:
            Places among the items, int64 ``[queries, k]``, the best first and of equals the lesser
            place, and their scores, float32.
        """
        ...


class Exact:
    """Goes through all items for every query; implements :class:`Retrieval`.

    On a processor that multiplies bytes (AVX512 VNNI) finite items are looked for with vectors
    rounded to 8 bits, and all that rounding leaves possible is scored again in float32
    (:class:`~drivetrain.core.in_bytes.InBytes`): what is found is the same. Elsewhere items lie in
    panels of 16, and 12 queries at a time go through a panel within the registers. Either way
    nearly all of the time is multiplications: no score of all is ever written down. Scores are
    sums in float32, so of nearly equal ones either may come first.

    Args:
        items: float32 ``[items, width]``; a copy is held.
        threads: that share the queries out; what is found does not depend on it.

    Raises:
        ValueError: there are no items, or they have no numbers.
    """

    def __init__(self, items: Array, threads: int = 1) -> None:
        if items.ndim != 2 or not items.size:
            raise wrong("items of Exact", items.shape, "[items, width], at least one of each")
        if threads < 1:
            raise wrong("Exact threads", threads, "1 or more")
        self.items, self.width = items.shape
        self._threads = threads
        self._rows = np.array(items, np.float32, order="C")
        bytes_ = in_bytes.there() and bool(np.isfinite(self._rows).all())
        self._bytes = InBytes(self._rows) if bytes_ else None
        self._panels: Array | None = None
        compiled = in_bytes.compiled
        if self._bytes is None and compiled is not None:
            self._panels = np.empty(-(-self.items // LANES) * LANES * self.width, np.float32)
            compiled.panels(self._rows, self.items, self.width, self._panels)
            self._rows = self._rows[:0]

    def search(self, queries: Array, k: int) -> tuple[Array, Array]:
        """The best ``k`` items of each query, as :class:`Retrieval` says.

        An item whose score is not a number is not found; where fewer than ``k`` are left, places
        are -1 and scores NaN.

        Raises:
            ValueError: the queries have another width, or there are fewer items than ``k``.
        """
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise wrong("queries", queries.shape, f"[queries, {self.width}]")
        if not 1 <= k <= self.items:
            raise wrong("k", k, f"1 to {self.items}, the number of items")
        asked = np.ascontiguousarray(queries, np.float32)
        scores = np.full((len(asked), k), np.nan, np.float32)
        places = np.full((len(asked), k), -1, np.int32)
        parts = list(self._parts(len(asked)))

        def some(part: slice) -> None:
            self._search(asked[part], k, scores[part], places[part])

        if len(parts) > 1 and self._threads > 1:
            with ThreadPoolExecutor(self._threads) as pool:
                for done in [pool.submit(some, part) for part in parts]:
                    done.result()
        else:
            for part in parts:
                some(part)
        return places.astype(np.int64), scores

    def _search(self, queries: Array, k: int, scores: Array, places: Array) -> None:
        if self._bytes is not None:
            self._bytes.search(queries, k, scores, places)
        elif self._panels is not None:
            in_bytes.compiled.search(
                *(self._panels, queries, self.items, self.width, len(queries), k, scores, places)
            )
        else:
            places[:], scores[:] = _by_numpy(self._rows, queries, k)

    def _parts(self, queries: int) -> Iterator[slice]:
        each = min(TOGETHER, max(1, -(-queries // self._threads)))
        for first in range(0, queries, each):
            yield slice(first, min(first + each, queries))


def recall_of(index: Retrieval, exact: Retrieval, queries: Array, k: int) -> float:
    """The share of what an exact search finds that an index finds, over all queries.

    Args:
        index: what is measured.
        exact: goes through all of the same items.
        queries: float32 ``[queries, width]``, such as a sample of those that were asked.
        k: of each, the best.

    Raises:
        ValueError: there are no queries that find anything.
    """
    due = exact.search(queries, k)[0]
    found = index.search(queries, k)[0]
    there = due >= 0
    if not there.any():
        raise wrong("queries", queries.shape, "at least one that finds an item")
    hits = (due[:, :, None] == found[:, None, :]).any(axis=2) & there
    return float(hits.sum() / there.sum())


def _by_numpy(items: Array, queries: Array, k: int) -> tuple[Array, Array]:
    with np.errstate(invalid="ignore"):
        scores = queries @ items.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # what is no number comes last
    best = np.take_along_axis(scores, order, axis=1)
    return np.where(np.isnan(best), -1, order), best
