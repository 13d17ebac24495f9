"""What was had together: the Gram matrix of items, and each item's nearest neighbours."""

from collections.abc import Iterator

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.train.native import recall as compiled
from drivetrain.train.recall.interactions import Sparse
from drivetrain.train.recall.sharing import share

PAIRS = 1 << 22
"""Pairs of entries, or sums, that numpy holds at once where nothing is compiled."""


def gram(had: Sparse) -> Array:
    """``X'X``, float64 ``[columns, columns]``."""
    sums = np.zeros((had.wide, had.wide), np.float32)
    if compiled is None:
        for first, last, found in _blocks(had):
            sums[first:last] = found
    else:
        matrix, sizes = _arrays(had), (had.rows, had.wide)
        share(lambda first, last: compiled.gram(*matrix, *sizes, first, last, sums), _costs(had))
    return sums.astype(np.float64)


def evened(had: Sparse, even: float) -> Sparse:
    """The rows, each by the root of its length to the power ``-even``; the sum of the squares of
    weights that are 1 stays what it was."""
    return weighed(had, np.sqrt(evenly(had, even))) if even else had


def evenly(had: Sparse, even: float) -> Array:
    """The length of each row to the power ``-even``, so scaled that the mean over the entries is 1:
    float64 ``[rows]``."""
    lengths = np.maximum(had.lengths, 1).astype(np.float64)
    counts = lengths**-even
    counts *= had.lengths.sum() / max((had.lengths * counts).sum(), _TINY)
    return counts


def weighed(had: Sparse, rows: Array) -> Sparse:
    """The rows, each multiplied by its number of ``[rows]``."""
    weights = had.weights * np.repeat(rows, had.lengths)
    return Sparse(had.starts, had.columns, weights.astype(np.float32), had.wide)


def nearest(had: Sparse, most: int, shrink: float) -> tuple[Array, Array]:
    """Of each column those that are most like it, by cosine with shrinkage, most alike first.

    Args:
        had: a row for each user.
        most: how many; equals come in the order of their numbers.
        shrink: added to the product of two columns' norms.

    Returns:
        Their numbers, int32 ``[columns, most]``, and how alike they are, float32. Where there are
        fewer than ``most`` with a product above 0, the rest have the number ``columns`` and 0.
    """
    numbers = np.full((had.wide, most), had.wide, np.int32)
    values = np.zeros((had.wide, most), np.float32)
    squares = np.square(had.weights.astype(np.float64))
    norms = np.sqrt(np.bincount(had.columns, weights=squares, minlength=had.wide))
    if compiled is None:
        for first, last, sums in _blocks(had):
            alike = (sums / (norms[first:last, None] * norms + shrink + _TINY)).astype(np.float32)
            alike[np.arange(last - first), np.arange(first, last)] = 0
            numbers[first:last], values[first:last] = _first(alike, most)
        return numbers, values
    matrix, sizes = _arrays(had), (had.rows, had.wide)
    share(
        lambda first, last: compiled.neighbours(
            *matrix, *sizes, first, last, norms, shrink, most, values, numbers
        ),
        _costs(had),
    )
    return numbers, values


_TINY = 1e-300
"""Keeps a column that nobody had from a division by nothing."""


def largest(weights: Array, most: int) -> tuple[Array, Array]:
    """Of each row of ``[columns, columns]`` the largest weights above 0, as :func:`nearest`."""
    columns = len(weights)
    numbers = np.empty((columns, most), np.int32)
    values = np.empty((columns, most), np.float32)
    step = max(1, PAIRS // columns)
    for first in range(0, columns, step):
        block = slice(first, min(first + step, columns))
        numbers[block], values[block] = _first(weights[block], most)
    return numbers, values


def _first(values: Array, most: int) -> tuple[Array, Array]:
    """The largest positive of each row, equals by number; padded with the width and 0."""
    rows, wide = values.shape
    # One order of 64 bits: the bits of a positive float ascend as it does, then comes the place.
    bits = np.maximum(values, np.float32(0)).view(np.uint32).astype(np.uint64) << np.uint64(32)
    keys = bits | (np.uint64(0xFFFFFFFF) - np.arange(wide, dtype=np.uint64))
    kept = min(most, wide)
    keys = np.sort(np.partition(keys, wide - kept, axis=1)[:, wide - kept :], axis=1)[:, ::-1]
    numbers = np.full((rows, most), wide, np.int32)
    found = np.zeros((rows, most), np.float32)
    found[:, :kept] = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
    numbers[:, :kept] = np.uint64(0xFFFFFFFF) - (keys & np.uint64(0xFFFFFFFF))
    numbers[found == 0] = wide
    return numbers, found


def _arrays(had: Sparse) -> tuple[Array, ...]:
    turned = had.turned
    rows = (had.starts, had.columns, had.weights)
    return (*rows, turned.starts, turned.columns, turned.weights)


def _costs(had: Sparse) -> Array:
    """What each column costs: the lengths of the rows that it is in."""
    turned = had.turned
    ends = np.concatenate([[0], np.cumsum(had.lengths[turned.columns])])
    return ends[turned.starts[1:]] - ends[turned.starts[:-1]] + 1


def _blocks(had: Sparse) -> Iterator[tuple[int, int, Array]]:
    """``X'X`` by blocks of its rows: ``(first, last, float64 [last - first, columns])``."""
    turned, costs = had.turned, _costs(had)
    first = 0
    while first < had.wide:
        sums = np.cumsum(costs[first : first + max(1, PAIRS // had.wide)])
        last = first + max(1, int(np.searchsorted(sums, PAIRS, side="right")))
        low, high = turned.starts[first], turned.starts[last]
        rows = turned.columns[low:high]
        column = np.repeat(np.arange(last - first), turned.lengths[first:last])
        times = had.lengths[rows]
        begin = np.cumsum(times) - times
        at = np.arange(times.sum()) - np.repeat(begin - had.starts[rows], times)
        weights = np.repeat(turned.weights[low:high], times).astype(np.float64) * had.weights[at]
        place = np.repeat(column, times) * had.wide + had.columns[at]
        found = np.bincount(place, weights=weights, minlength=(last - first) * had.wide)
        yield first, last, found.reshape(last - first, had.wide)
        first = last
