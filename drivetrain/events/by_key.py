"""Finds the rows that have a key: what is looked up in is laid out once, not for each chunk."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain.core.batch import Array
from drivetrain.core.need import need

pc = need("pyarrow.compute", "data")

SPREAD = 8
"""Integers lie close where there is one in so many; a table of all between then finds them."""


class ByKey:
    """Numbers the different keys of rows, a key being the values of one or several columns.

    Attributes:
        numbers: int64 ``[rows]``, from 0 without a gap; equal where the keys are, and -1 where a
            value is missing.
    """

    def __init__(self, keys: Sequence[Any]) -> None:
        """Number them; ``keys`` are Arrow columns ``[rows]``, at least one."""
        self._columns: list[tuple[_Values, _Values | None]] = []
        for column in keys:
            values, pairs = _Values(pc.unique(_one_zero(column.drop_null()))), None
            found = values.find(column)
            if self._columns:
                found = _paired(self.numbers, found, len(values))
                pairs = _Values(pa.array(np.unique(found[found >= 0])))
                found = pairs.find(pa.array(found))
            self._columns.append((values, pairs))
            self.numbers = found

    def find(self, keys: Sequence[Any]) -> Array:
        """The number of each key, -1 for one that is unknown or has a missing value.

        Args:
            keys: Arrow columns ``[n]``, of the types that they had at construction.

        Returns:
            int64 ``[n]``.
        """
        numbers = np.empty(0, np.int64)
        for column, (values, pairs) in zip(keys, self._columns, strict=True):
            found = values.find(column)
            if pairs is not None:
                found = pairs.find(pa.array(_paired(numbers, found, len(values))))
            numbers = found
        return numbers


def _one_zero(column: Any) -> Any:
    """The column; of floats, with zeros of one sign."""
    return (
        pc.add(column, pa.scalar(0, column.type)) if pa.types.is_floating(column.type) else column
    )


def _paired(first: Array, second: Array, count: int) -> Array:
    """One number for two, of which the second is below ``count``; -1 where one of them is."""
    return np.where((first >= 0) & (second >= 0), first * count + second, -1)


class _Values:
    """The places of different values, none of them missing."""

    def __init__(self, values: Any) -> None:
        self._values = values
        self._whole = pa.types.is_integer(values.type) or pa.types.is_timestamp(values.type)
        if not self._whole:
            return
        numbers = values.cast(pa.int64()).to_numpy()
        self._order = np.argsort(numbers)
        self._sorted = numbers[self._order]
        self._table = np.empty(0, np.int32)
        if len(numbers):
            low, high = int(self._sorted[0]), int(self._sorted[-1])
            if high - low < SPREAD * len(numbers) < 2**31:
                # One place more is for all that lies outside.
                self._table = np.full(high - low + 2, -1, np.int32)
                self._table[numbers - low] = np.arange(len(numbers))

    def __len__(self) -> int:
        return len(self._values)

    def find(self, column: Any) -> Array:
        """The place of each value, int64 ``[rows]``; -1 for one that is not there or missing."""
        if not self._whole:
            places = pc.index_in(_one_zero(column), value_set=self._values, skip_nulls=True)
            return places.fill_null(-1).to_numpy().astype(np.int64)
        numbers = column.cast(pa.int64()).fill_null(0).to_numpy()
        places = self._near(numbers) if len(self._table) else self._far(numbers)
        if column.null_count:
            places[column.is_null().to_numpy(zero_copy_only=False)] = -1
        return places

    def _near(self, numbers: Array) -> Array:
        # Without a sign, what is less than the least is more than the greatest.
        above = numbers.view(np.uint64) - self._sorted[:1].view(np.uint64)
        last = np.uint64(len(self._table) - 1)
        return self._table[np.minimum(above, last).view(np.int64)].astype(np.int64)

    def _far(self, numbers: Array) -> Array:
        if not len(self):
            return np.full(len(numbers), -1)
        at = np.minimum(np.searchsorted(self._sorted, numbers), len(self) - 1)
        return np.where(self._sorted[at] == numbers, self._order[at], -1)
