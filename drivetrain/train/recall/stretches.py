"""What users had within a stretch of time: when each pair was had, and rows cut by it."""

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.core.schema import MISSING_INT
from drivetrain.core.seams import Examples
from drivetrain.train.recall.interactions import FIRST_USER, Interactions, Sparse, aligned

GRIDS = 4
"""Divisions of time into stretches, each a quarter of one behind the last: so it hardly matters
where a stretch begins. Two moments share ``1 - apart / near`` of the divisions, about."""


def moments(
    source: Examples, found: Interactions, *, column: int, item: str, time: str, where: str
) -> Array:
    """When each pair was last had, int64 ``[entries of found.had]``: microseconds, or missing.

    Args:
        source: its training rows, which are read once more.
        found: the pairs.
        column: the user's column of the tensor ``index``.
        item: the column of items.
        time: the column of times.
        where: as errors name it.

    Raises:
        ValueError: there is no such column, or it has no times.
    """
    field = source.events.schema.field(time, where)
    if field.dtype != "timestamp" or field.shape:
        raise wrong(f"{where}, column {time!r}", field.dtype, "timestamp")
    had = found.had
    pairs = np.repeat(np.arange(had.rows), had.lengths) * had.wide + had.columns
    last = np.full(len(pairs), MISSING_INT)
    if not len(pairs):
        return last
    numbers = {value: at for at, value in enumerate(found.catalogue.tolist())}
    for user, raw in aligned(source, column, "train"):
        place = np.array([numbers.get(value, -1) for value in raw[item].tolist()], np.int64)
        pair = user * had.wide + place
        at = np.searchsorted(pairs, pair).clip(max=len(pairs) - 1)
        known = (user >= FIRST_USER) & (place >= 0) & (pairs[at] == pair)
        np.maximum.at(last, at[known], raw[time][known])
    return last


def cut(had: Sparse, times: Array, near: int, close: float) -> Sparse:
    """Rows whose Gram matrix is ``(1 - close)`` of that of the rows and ``close`` of the stretches.

    The rows of what is given come first, and then, for each of :data:`GRIDS` divisions of time,
    each row's entries of one stretch as a row. The stretches' Gram matrix is the mean over the
    divisions: its diagonal is that of the rows, and what was had far apart adds nothing to it. An
    entry whose time is missing is in a stretch of its own.

    Args:
        had: the rows.
        times: of their entries, microseconds.
        near: a stretch's length in microseconds.
        close: the share of the stretches, from 0 to 1.
    """
    row = np.repeat(np.arange(had.rows), had.lengths)
    lengths, columns = [had.lengths], [had.columns]
    weights = [had.weights * np.float32(np.sqrt(1 - close))]
    for number in range(GRIDS):
        stretch = (times + number * near // GRIDS) // near
        order = np.lexsort((stretch, row))  # stable, so columns go on ascending
        new = np.diff(row[order], prepend=-1) != 0
        new[1:] |= np.diff(stretch[order]) != 0
        new |= times[order] == MISSING_INT
        lengths.append(np.diff(np.flatnonzero(new), append=len(order)))
        columns.append(had.columns[order])
        weights.append(had.weights[order] * np.float32(np.sqrt(close / GRIDS)))
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return Sparse(starts, np.concatenate(columns), np.concatenate(weights), had.wide)
