"""Statistics taken in batch by batch, each in memory that does not grow with the rows."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from drivetrain.core.batch import Array, Batch, Categorical, Column
from drivetrain.core.errors import wrong
from drivetrain.core.measured import Fitted, Value, as_numbers, mapped
from drivetrain.core.schema import MISSING_INT, Schema
from drivetrain.core.sketch import (
    REGISTERS,
    Counts,
    DistinctSketch,
    MomentsValue,
    QuantileSketch,
    text_hash,
)
from drivetrain.core.statistic import Distinct, Map, Moments, Quantiles, Statistic, TopK

NUMERIC = ("int64", "float32", "float64", "timestamp")
COUNTED = ("string", "int64", "timestamp")


def check(statistics: Sequence[Statistic], schema: Schema) -> None:
    """Hold statistics against the columns that they are of.

    Raises:
        ValueError: a column is absent, or of a type that the statistic is not defined for.
    """
    for statistic in statistics:
        name = type(statistic).__name__
        field = schema.field(statistic.column, f"statistic {name}")
        numeric = isinstance(statistic, Moments | Quantiles)
        allowed = NUMERIC if numeric else COUNTED
        if field.dtype not in allowed:
            where = f"statistic {name} of column {field.name!r}"
            raise wrong(where, field.dtype, f"a column of {', '.join(allowed)}")
        if field.shape and not numeric:
            where = f"statistic {name} of column {field.name!r}"
            raise wrong(where, f"{field.dtype} of shape {field.shape}", "one value a row")


class Accumulator(Protocol):
    """One statistic on the way: takes columns in, and answers for all it has seen."""

    def add(self, column: Column) -> None:
        """Take in the column of one batch."""
        ...

    def value(self) -> Value:
        """The statistic's value over everything added."""
        ...


def accumulator(statistic: Statistic) -> Accumulator:
    """What takes in the column of ``statistic``, batch by batch."""
    match statistic:
        case Moments():
            return _Moments(statistic)
        case Quantiles():
            return _Buckets()
        case TopK():
            return _Vocabulary(statistic.capacity)
        case Distinct():
            return _Registers()


def accumulate(statistics: Sequence[Statistic], batches: Iterable[Batch]) -> Fitted:
    """The value of each statistic over all batches."""
    states = {statistic: accumulator(statistic) for statistic in statistics}
    for batch in batches:
        for statistic, state in states.items():
            state.add(batch.column(statistic.column))
    return {statistic: state.value() for statistic, state in states.items()}


class _Moments:
    def __init__(self, statistic: Moments) -> None:
        self._of: Map = statistic.of
        self._total = MomentsValue()

    def add(self, column: Column) -> None:
        self._total = self._total.merge(MomentsValue.of(mapped(as_numbers(column), self._of)))

    def value(self) -> MomentsValue:
        return self._total


_TINY = float(np.finfo(np.float64).tiny)  # the least number that is not subnormal
_WAITING = 1 << 20
_NEAR = 1 << 21


class _Buckets:
    """A quantile sketch that counts the leading bits of numbers, so that a batch costs no sort.

    The sign, the exponent and the first bits of the mantissa are a small integer, and the number
    that has these bits and no more lies in the sketch's bucket of them all. The sketch only ever
    grows coarser, so no more bits are looked at than it kept last. Zero and subnormal numbers
    have no leading one in the mantissa: they are counted whole.
    """

    def __init__(self) -> None:
        self._sketch = QuantileSketch.of(np.empty(0))

    def add(self, column: Column) -> None:
        numbers = as_numbers(column)
        finite = np.isfinite(numbers)
        missing = 0
        if not finite.all():
            missing = len(numbers) - int(finite.sum())
            numbers = numbers[finite]
        if not len(numbers):
            self._sketch = replace(self._sketch, missing=self._sketch.missing + missing)
            return
        extremes = {"minimum": float(numbers.min()), "maximum": float(numbers.max())}
        values, counts = self._leading(numbers, extremes["minimum"] < 0)
        part = replace(QuantileSketch.of(values, counts), missing=missing, **extremes)
        self._sketch = self._sketch.merge(part)

    def _leading(self, numbers: Array, negative: bool) -> tuple[Array, Array]:
        """A number of the bucket of each, every one once, and how often it occurs."""
        dropped = 52 - self._sketch.precision
        bits = np.ascontiguousarray(numbers).view(np.int64) >> dropped
        sides = (bits[bits < 0], bits[bits >= 0]) if negative else (bits,)
        found = [_counted(side) for side in sides if len(side)]
        values = (np.concatenate([first for first, _ in found]) << dropped).view(np.float64)
        counts = np.concatenate([count for _, count in found])
        normal = np.abs(values) >= _TINY
        if normal.all():
            return values, counts
        tiny, often = np.unique(numbers[np.abs(numbers) < _TINY], return_counts=True)
        return np.append(values[normal], tiny), np.append(counts[normal], often)

    def value(self) -> QuantileSketch:
        return self._sketch


def _counted(numbers: Array) -> tuple[Array, Array]:
    """The distinct ones of int64 ``[rows]`` and how often each occurs; fast when they are near."""
    least = numbers.min()
    if numbers.max() - least > _NEAR:
        return np.unique(numbers, return_counts=True)
    counts = np.bincount(numbers - least)
    used = np.flatnonzero(counts)
    return used + least, counts[used]


class _Vocabulary:
    """Counts in one dictionary, cut when twice the capacity is reached."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._counts: dict[str | int, int] = {}
        self._missing = 0
        self._others = 0

    def add(self, column: Column) -> None:
        values, counts, missing = distinct(column)
        self._missing += missing
        total = self._counts
        for value, count in zip(values, counts, strict=True):
            total[value] = total.get(value, 0) + count
        if len(total) > 2 * self._capacity:
            cut = self._cut()
            self._counts, self._others = dict(cut.values), cut.others

    def _cut(self) -> Counts:
        return Counts.of(self._counts.items(), self._missing, self._capacity, self._others)

    def value(self) -> Counts:
        return self._cut()


class _Registers:
    """HyperLogLog registers; a text that was hashed lately is not hashed again."""

    def __init__(self) -> None:
        self._sketch = DistinctSketch(np.zeros(REGISTERS, dtype=np.uint8))
        self._seen: set[str | int] = set()

    def add(self, column: Column) -> None:
        fresh = set(distinct(column)[0]) - self._seen
        if not fresh:
            return
        hashes = np.array([text_hash(str(value)) for value in fresh], dtype=np.uint64)
        self._sketch = self._sketch.merge(DistinctSketch.of_hashes(hashes))
        if len(self._seen) > _WAITING:
            self._seen = set()
        self._seen |= fresh

    def value(self) -> DistinctSketch:
        return self._sketch


def distinct(column: Column) -> tuple[list[str | int], list[int], int]:
    """The values of a string or integer column, how often each occurs, and how many miss one.

    A categorical column may name a value twice: then its counts come in parts.
    """
    if isinstance(column, Categorical):
        counts = np.bincount(column.codes, minlength=len(column.values))
        used = np.flatnonzero(counts)
        values, counts, missing = column.values[used], counts[used], ""
    else:
        values, counts = np.unique(column, return_counts=True)
        missing = "" if values.dtype == object else MISSING_INT
    absent = values == missing
    present = ~absent
    return values[present].tolist(), counts[present].tolist(), int(counts[absent].sum())
