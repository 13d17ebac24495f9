"""Finds, for each row, the last observation before it: two binary searches over all keys at once.

Sorting once what is looked up in, and only searching per chunk, costs less than a query engine's
own as-of join, which sorts both sides anew for every chunk; a test holds the two equal.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain.core.batch import Array
from drivetrain.core.need import need
from drivetrain.events.by_key import ByKey

pc = need("pyarrow.compute", "data")


class LastBefore:
    """Rows of a table in order of key and time, to search in."""

    def __init__(
        self,
        keys: Sequence[Any],
        times: Any,
        *,
        strict: bool = True,
        tolerance_us: int | None = None,
    ) -> None:
        """Sort the rows.

        Args:
            keys: Arrow columns ``[observations]`` whose values must be equal; may be none.
            times: timestamps in microseconds ``[observations]``.
            strict: an observation counts only before a time, not at it.
            tolerance_us: how much older an observation may be, in microseconds.
        """
        self.strict = strict
        self.tolerance_us = tolerance_us
        self._by = ByKey(keys) if keys else None
        codes = np.zeros(len(times), np.int64) if self._by is None else self._by.numbers
        moments = _microseconds(times)
        rows = np.flatnonzero((codes >= 0) & _valid(times))
        rows = rows[np.lexsort((moments[rows], codes[rows]))]  # stable: of equals, order decides
        self.rows, self.codes, self.moments = rows, codes[rows], moments[rows]
        self.calendar = np.unique(self.moments)
        ranks = np.searchsorted(self.calendar, self.moments)
        self.places = self.codes * (len(self.calendar) + 1) + ranks

    def find(self, keys: Sequence[Any], times: Any) -> Array:
        """The row of the last observation before each time, -1 where there is none.

        Args:
            keys: Arrow columns ``[rows]``, as at construction.
            times: timestamps in microseconds ``[rows]``.

        Returns:
            int64 ``[rows]``.
        """
        codes = np.zeros(len(times), np.int64) if self._by is None else self._by.find(keys)
        moments = _microseconds(times)
        # how many moments of the calendar lie before each time: an observation counts if its
        # rank is below that
        before = np.searchsorted(self.calendar, moments, "left" if self.strict else "right")
        place = codes * (len(self.calendar) + 1) + before
        position = np.searchsorted(self.places, place, "left") - 1
        found = (codes >= 0) & _valid(times) & (position >= 0)
        position = np.where(found, position, 0)
        if len(self.rows):
            found &= self.codes[position] == codes
            if self.tolerance_us is not None:
                found &= moments - self.moments[position] <= self.tolerance_us
            return np.where(found, self.rows[position], -1)
        return np.full(len(times), -1, dtype=np.int64)


def _valid(column: Any) -> Array:
    return np.asarray(pc.is_valid(column))


def _microseconds(times: Any) -> Array:
    return pc.fill_null(times.cast(pa.int64()), 0).to_numpy()
