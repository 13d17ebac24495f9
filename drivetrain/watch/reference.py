"""What new rows are held against: one reference for each column that a bundle has statistics of.

The figure is the population stability index (Lewis 1994, Siddiqi 2006), which is Jeffreys'
divergence (1946) between two histograms: the sum of ``(q - p) * log(q / p)`` over the bins. It
reads the same for numbers and categories.
"""

from dataclasses import dataclass

import numpy as np

from drivetrain.core.batch import Array, Categorical, Column
from drivetrain.core.errors import wrong
from drivetrain.core.measured import Fitted, as_numbers
from drivetrain.core.schema import MISSING_INT
from drivetrain.core.sketch import Counts, QuantileSketch

FLOOR = 1e-4
"""The share that every bin has at least: an empty one would make the index infinite."""
OWN_BIN = 50
"""Categories with a bin of their own. A vocabulary of thousands would drown its drift in noise,
for chance alone adds ``(bins - 1) * (1/n + 1/m)``; the rarer ones share a bin."""


@dataclass(frozen=True, kw_only=True)
class DriftValue:
    """How one column moved.

    Attributes:
        rows: how many were compared.
        psi: the population stability index, missing values being a bin.
        by_chance: what ``psi`` would be on average if nothing had moved, for so many rows
            (Yurdakul and Naranjo 2020). An index near it says nothing.
        distance: between 0 and 1; of numbers the greatest difference of the two distribution
            functions (Kolmogorov-Smirnov), of categories the total variation; missing values
            apart.
        missing: share of rows without a value.
        missing_before: the same in the reference.
        unknown: share of rows whose category the bundle does not hold.
        unknown_before: share of the reference whose category fell out of the bundle's counts.
    """

    rows: int
    psi: float
    by_chance: float
    distance: float
    missing: float
    missing_before: float
    unknown: float = 0.0
    unknown_before: float = 0.0


def stability_index(before: Array, after: Array) -> float:
    """The population stability index of two histograms over the same bins.

    Each histogram is mixed with ``FLOOR`` of every bin, so that it is finite, and 0 for shares
    that are equal.

    Args:
        before: counts ``[bins]``, not all zero.
        after: counts ``[bins]``, not all zero.
    """
    rest = 1 - FLOOR * len(before)
    p = before / before.sum() * rest + FLOOR
    q = after / after.sum() * rest + FLOOR
    return float(((q - p) * np.log(q / p)).sum())


def _by_chance(before: Array, after: Array) -> float:
    bins = int(((before > 0) | (after > 0)).sum())
    return (bins - 1) * (1 / float(before.sum()) + 1 / float(after.sum()))


@dataclass(frozen=True, eq=False)
class Tally:
    """How often each known category occurred, then the rarer, the unknown and the missing."""

    counts: Array  # int64 [own bins + 3]

    def merge(self, other: "Tally") -> "Tally":
        """The tally of both sets of rows."""
        return Tally(self.counts + other.counts)


Live = QuantileSketch | Tally


class Numbers:
    """The reference of a numeric column."""

    def __init__(self, reference: QuantileSketch, bins: int) -> None:
        self._reference = reference
        self._bins = bins

    def sketch(self, column: Column) -> QuantileSketch:
        """The sketch of new values."""
        return QuantileSketch.of(as_numbers(column))

    def compare(self, live: QuantileSketch) -> DriftValue:
        """Hold new values against the reference."""
        precision = min(self._reference.precision, live.precision)
        before, after = _coarsened(self._reference, precision), _coarsened(live, precision)
        binned = _binned(before, after, self._bins)
        p, q = (
            np.append(counts, sketch.missing)
            for counts, sketch in zip(binned, (before, after), strict=True)
        )
        return DriftValue(
            rows=int(q.sum()),
            psi=stability_index(p, q),
            by_chance=_by_chance(p, q),
            distance=_kolmogorov_smirnov(before, after),
            missing=float(q[-1] / q.sum()),
            missing_before=float(p[-1] / p.sum()),
        )


def _coarsened(sketch: QuantileSketch, precision: int) -> QuantileSketch:
    """A sketch at a lower precision: what merging it with an empty one of that precision gives."""
    none = np.empty(0, dtype=np.int64)
    return QuantileSketch(precision, none, none, 0, np.nan, np.nan).merge(sketch)


def _binned(before: QuantileSketch, after: QuantileSketch, bins: int) -> tuple[Array, Array]:
    """Both sketches' counts in bins of about equal reference mass.

    A bin ends where a bucket of the sketch ends. So a value that many rows share stays whole,
    and equal distributions have equal shares whatever their precision was.
    """
    if not before.count:
        return np.zeros(1, np.int64), np.array([after.count])
    middle = np.cumsum(before.counts) - before.counts / 2
    at = (middle * bins // before.count).astype(np.int64)
    ends = np.append(np.flatnonzero(np.diff(at)), len(at) - 1)
    last_keys = before.keys[ends]
    last_keys[-1] = np.iinfo(np.int64).max  # what lies beyond the reference is in the end bins
    p = np.add.reduceat(before.counts, np.append(0, ends[:-1] + 1))
    q = np.zeros(len(p), dtype=np.int64)
    np.add.at(q, np.searchsorted(last_keys, after.keys), after.counts)
    return p, q


def _kolmogorov_smirnov(before: QuantileSketch, after: QuantileSketch) -> float:
    if not before.count or not after.count:
        return float(before.count != after.count)
    keys = np.union1d(before.keys, after.keys)
    below = []
    for sketch in (before, after):
        total = np.append(0, np.cumsum(sketch.counts)) / sketch.count
        below.append(total[np.searchsorted(sketch.keys, keys, side="right")])
    return float(np.abs(below[0] - below[1]).max())


class Categories:
    """The reference of a column of categories."""

    def __init__(self, reference: Counts) -> None:
        own = reference.values[:OWN_BIN]
        rarer = reference.values[OWN_BIN:]
        self._bin: dict[str | int, int] = {value: at for at, (value, _) in enumerate(own)}
        self._rarer = len(own)
        self._bin.update((value, self._rarer) for value, _ in rarer)
        self._counts = np.array(
            [
                *(count for _, count in own),
                sum(count for _, count in rarer),
                reference.others,
                reference.missing,
            ]
        )

    def sketch(self, column: Column) -> Tally:
        """The tally of new values."""
        if isinstance(column, Categorical):
            values = column.values.tolist()
            found = np.bincount(column.codes, minlength=len(values))
        else:
            distinct, found = np.unique(column, return_counts=True)
            values = distinct.tolist()
        other, absent = self._rarer + 1, self._rarer + 2
        at = [
            absent if value in ("", MISSING_INT) else self._bin.get(value, other)
            for value in values
        ]
        counts = np.zeros(absent + 1, dtype=np.int64)
        np.add.at(counts, np.array(at, dtype=np.int64), found)
        return Tally(counts)

    def compare(self, live: Tally) -> DriftValue:
        """Hold new values against the reference."""
        p, q = self._counts, live.counts
        present_p, present_q = p[:-1], q[:-1]
        if present_p.any() and present_q.any():
            gap = present_p / present_p.sum() - present_q / present_q.sum()
            distance = float(np.abs(gap).sum() / 2)
        else:
            distance = float(present_p.any() != present_q.any())
        return DriftValue(
            rows=int(q.sum()),
            psi=stability_index(p, q),
            by_chance=_by_chance(p, q),
            distance=distance,
            missing=float(q[-1] / q.sum()),
            missing_before=float(p[-1] / p.sum()),
            unknown=float(q[-2] / q.sum()),
            unknown_before=float(p[-2] / p.sum()),
        )


def references(fitted: Fitted, bins: int = 10) -> dict[str, Numbers | Categories]:
    """What new rows can be held against, by column.

    Counts come before quantiles: integers that a feature looks up are categories. Moments alone
    tell no distribution, and a reference without a row nothing at all.
    """
    if not 2 <= bins <= 1000:
        raise wrong("bins", bins, "2 to 1000")
    found: dict[str, Numbers | Categories] = {}
    for statistic, value in fitted.items():
        if isinstance(value, Counts) and value.count + value.missing:
            found[statistic.column] = Categories(value)
        elif isinstance(value, QuantileSketch) and value.count + value.missing:
            found.setdefault(statistic.column, Numbers(value, bins))
    return found
