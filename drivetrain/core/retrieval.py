"""Exact search: of all items those whose vectors have the largest dot products with a query's."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong


def _found() -> Any:
    try:
        return import_module("drivetrain.core.native.search")
    except ImportError:  # there was no compiler where this was installed
        return None


compiled: Any = _found()
"""The loops over all items; None where numpy does."""
LANES, GROUP = 16, 12
TOGETHER = 960
"""Queries that go through the items together: a whole number of groups."""


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

    Items lie in panels of 16, and 12 queries at a time go through a panel within the registers, so
    that nearly all of the time is multiplications: no score of all is ever written down. Sums are
    in float32, in the order of the dimensions.

    With ``candidates`` above 0, on a processor that multiplies bytes (AVX512 VNNI), items are first
    looked for with vectors that are rounded to 8 bits, each with a scale of its own; of ``k``
    wanted ``k * candidates`` are then scored again in float32. That is no longer exact: measure
    the recall, which is above 0.999 for vectors of 64 normal numbers and 2.

    Args:
        items: float32 ``[items, width]``; a copy is held.
        threads: that share the queries out; what is found does not depend on it.
        candidates: for each item wanted, or 0 for a search that is exact whatever the items are.

    Raises:
        ValueError: there are no items, or they have no numbers.
    """

    def __init__(self, items: Array, threads: int = 1, candidates: float = 0) -> None:
        if items.ndim != 2 or not items.size:
            raise wrong("items of Exact", items.shape, "[items, width], at least one of each")
        if threads < 1:
            raise wrong("Exact threads", threads, "1 or more")
        if candidates != 0 and not 1 <= candidates < math.inf:
            raise wrong("Exact candidates", candidates, "0, or 1 or more for each item wanted")
        self.items, self.width = items.shape
        self._threads = threads
        whole = np.ascontiguousarray(items, np.float32)
        self._candidates = candidates if compiled is not None and compiled.bytes() else 0
        if compiled is None:
            self._held = whole.copy()
            return
        if self._candidates:
            self._rows = whole.copy()
            self._bytes = _in_bytes(whole)
            return
        self._held = np.empty(-(-self.items // LANES) * LANES * self.width, np.float32)
        compiled.panels(whole, self.items, self.width, self._held)

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
            if compiled is None:
                places[part], scores[part] = _by_numpy(self._held, asked[part], k)
                return
            count = part.stop - part.start
            if self._candidates:
                most = min(self.items, math.ceil(k * self._candidates))
                compiled.rough(
                    *(*self._bytes, *_in_groups(asked[part]), self._rows),
                    *(asked[part], self.items, self.width, count, most, k),
                    *(scores[part], places[part]),
                )
                self._beyond_bytes(asked[part], scores[part], places[part])
                return
            compiled.search(
                *(self._held, asked[part], self.items, self.width, count, k),
                *(scores[part], places[part]),
            )

        if len(parts) > 1 and self._threads > 1:
            with ThreadPoolExecutor(self._threads) as pool:
                for done in [pool.submit(some, part) for part in parts]:
                    done.result()
        else:
            for part in parts:
                some(part)
        return places.astype(np.int64), scores

    def _parts(self, queries: int) -> Iterator[slice]:
        each = min(TOGETHER, max(1, -(-queries // self._threads)))
        for first in range(0, queries, each):
            yield slice(first, min(first + each, queries))

    def _beyond_bytes(self, queries: Array, scores: Array, places: Array) -> None:
        """Find anew what queries that cannot be rounded ask for, in place."""
        for one in np.flatnonzero(~np.isfinite(queries).all(axis=1)):
            if np.isnan(queries[one]).any():
                places[one], scores[one] = -1, np.nan
            else:
                found = _by_numpy(self._rows, queries[one : one + 1], places.shape[1])
                places[one], scores[one] = found[0][0], found[1][0]


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


def _rounded(rows: Array) -> tuple[Array, Array]:
    """Rows in steps of a 127th of their largest number, int8; zeros fill the fours of a row up."""
    scales = np.abs(rows).max(axis=1, initial=0).astype(np.float32) / 127
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.rint(rows / scales[:, None])
    whole = np.zeros((len(rows), -(-rows.shape[1] // 4) * 4), np.int8)
    whole[:, : rows.shape[1]] = np.nan_to_num(steps, nan=0, posinf=0, neginf=0)
    return whole, scales


def _in_bytes(rows: Array) -> tuple[Array, Array, Array, Array]:
    """Items as bytes in the order of their scales, which are then much the same in a panel.

    Returns:
        For each four dimensions 16 items of four bytes side by side, 128 added; the items' scales,
        NaN where there is none; one over the largest of each 32; the items' places.
    """
    whole, scales = _rounded(rows)
    items, count = len(rows), -(-len(rows) // (2 * LANES)) * 2 * LANES
    order = np.zeros(count, np.int32)
    order[:items] = np.argsort(-scales, kind="stable")  # what is no number comes last
    all_ = np.zeros((count, whole.shape[1]), np.uint8)
    all_[:items] = (whole[order[:items]].astype(np.int16) + 128).astype(np.uint8)
    panels = all_.reshape(count // LANES, LANES, -1, 4).transpose(0, 2, 1, 3)
    sorted_ = np.full(count, np.nan, np.float32)
    sorted_[:items] = scales[order[:items]]
    most = np.fmax(np.fmax.reduce(sorted_.reshape(-1, 2 * LANES), axis=1), 0)
    with np.errstate(divide="ignore", over="ignore"):
        steps = np.minimum(1 / most, np.finfo(np.float32).max)
    return np.ascontiguousarray(panels), sorted_, steps.astype(np.float32), order


def _in_groups(queries: Array) -> tuple[Array, Array]:
    """Queries as bytes in groups of 12, and 128 times their sums. Their scales change no order."""
    whole, _ = _rounded(queries)
    count = -(-len(queries) // GROUP) * GROUP
    all_ = np.zeros((count, whole.shape[1]), np.int8)
    all_[: len(queries)] = whole
    groups = all_.reshape(count // GROUP, GROUP, -1, 4).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(groups), all_.sum(axis=1, dtype=np.int32) * np.int32(128)
