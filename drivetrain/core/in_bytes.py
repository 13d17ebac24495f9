"""Items in 8 bits, each with a scale of its own, and what rounding takes from a score at most."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from drivetrain.core.batch import Array


def _found() -> Any:
    try:
        return import_module("drivetrain.core.native.search")
    except ImportError:  # there was no compiler where this was installed
        return None


compiled: Any = _found()
"""The loops over all items; None where numpy does."""
LANES = 16
_PAIR = 2 * LANES
_SUMS = np.float32(2**-20)
"""What sums in float32 may be off beside, as a part of the product of norms."""

_NOTHING = np.zeros(0, np.int32)

PANELS, SCALES, LIMITS = "panels", "scales", "limits"


def there() -> bool:
    """Whether this processor multiplies bytes (AVX512 VNNI), and the search was compiled."""
    return compiled is not None and bool(compiled.bytes())


class InBytes:
    """Items in 8 bits, for an exact search that reads a quarter of their bytes.

    A dimension is divided by its largest number, so that one of large numbers leaves the others
    their steps; then each item is rounded to steps of a 127th of its largest number. A score in
    8 bits differs from the true one by no more than ``|q| |x - x'| + |q - q'| |x'|``, and whatever
    that leaves possible is scored again in float32. Items lie in the order of their scales, so
    that scales and norms are much the same in 32 of them, which are two panels.

    Args:
        rows: float32 ``[places, width]``, finite. Read, not copied, by :meth:`place`.
        items: the places before this one are found; the others once they are placed.

    Attributes:
        arrays: what changes, its first dimension pairs of panels, so that copies are kept up with
            by the rows of :meth:`place`:
            ``panels`` uint8 ``[pairs, 2, fours, 16, 4]``, 128 added;
            ``scales`` float32 ``[pairs, 32]``, NaN for what is not found;
            ``limits`` float32 ``[pairs, 3]``: one over the largest scale, the largest
            ``|x - x'|`` and the largest ``|x'|`` of each.
        columns: float32 ``[width]``: what each dimension is divided by.
        order: int32 ``[pairs * 32]``: the place of each item of the panels.
    """

    def __init__(self, rows: Array, items: int | None = None) -> None:
        self._rows = rows
        places, width = rows.shape
        pairs, fours = -(-places // _PAIR), -(-width // 4)
        largest = np.abs(rows).max(axis=0, initial=0)
        self.columns = np.where(largest > 0, largest, 1).astype(np.float32)
        self.arrays: Mapping[str, Array] = {
            PANELS: np.full((pairs, 2, fours, LANES, 4), 128, np.uint8),
            SCALES: np.full((pairs, _PAIR), np.nan, np.float32),
            LIMITS: np.zeros((pairs, 3), np.float32),
        }
        self._norms = np.zeros((2, pairs, _PAIR), np.float32)  # of what each lost, and of the rest
        _, scales, _ = _rounded(rows / self.columns)
        self.order = np.zeros(pairs * _PAIR, np.int32)
        self.order[:places] = np.argsort(-scales, kind="stable")
        self._at = np.empty(places, np.int64)
        self._at[self.order[:places]] = np.arange(places)
        self.place(np.arange(places if items is None else items))

    def place(self, places: Array, taken: int | None = None) -> dict[str, Array]:
        """Have items found as their rows are now; the rows of :attr:`arrays` that changed.

        Args:
            places: of the items.
            taken: from this one on they are found no more.
        """
        if not len(places):
            return {}
        whole, scales, lost = _rounded(self._rows[places] / self.columns)
        if taken is not None:
            scales[places >= taken] = np.nan
        pair, lane = np.divmod(self._at[places], _PAIR)
        fours = whole.reshape(len(whole), -1, 4).astype(np.int16) + 128
        self.arrays[PANELS][pair, lane // LANES, :, lane % LANES] = fours.astype(np.uint8)
        self.arrays[SCALES][pair, lane] = scales
        left = np.linalg.norm(whole * scales[:, None], axis=1)
        self._norms[0, pair, lane] = lost + _SUMS * left
        self._norms[1, pair, lane] = left
        changed = np.unique(pair)
        limits = self.arrays[LIMITS]
        most = np.fmax(np.fmax.reduce(self.arrays[SCALES][changed], axis=1), 0)
        with np.errstate(divide="ignore", over="ignore"):
            limits[changed, 0] = np.minimum(1 / most, np.finfo(np.float32).max)
        limits[changed, 1:] = np.fmax.reduce(self._norms[:, changed], axis=2, initial=0).T
        return dict.fromkeys(self.arrays, changed)

    def search(
        self,
        queries: Array,
        k: int,
        scores: Array,
        places: Array,
        *,
        never: Sequence[Array] = (),
        arrays: Mapping[str, Array] | None = None,
        rows: Array | None = None,
        items: int | None = None,
    ) -> None:
        """Find the ``k`` items of the largest products; on any thread, without the interpreter.

        Args:
            queries: float32 ``[queries, width]``.
            k: from 1 to the number of items.
            scores: float32 ``[queries, k]``, takes the scores, the best first; where fewer are
                left than ``k`` the others stay as they are.
            places: int32 ``[queries, k]``, takes the places; of equal scores the lesser first.
            never: ascending int32 places for each query that it is not to find; empty: none.
            arrays: a copy of :attr:`arrays` to be searched in their stead.
            rows: the items that it is a copy of.
            items: how many of them are found, where not all are.
        """
        arrays = self.arrays if arrays is None else arrays
        rows = self._rows if rows is None else rows
        asked = np.ascontiguousarray(queries, np.float32)
        starts = np.zeros(len(asked) + 1, np.int64)
        if never:
            np.cumsum([len(each) for each in never], out=starts[1:])
        compiled.in_bytes(
            *(arrays[PANELS], arrays[SCALES], arrays[LIMITS], self.order, rows, self.columns),
            *(asked, starts, np.concatenate(never) if never else _NOTHING, scores, places),
            *(len(arrays[LIMITS]), len(rows) if items is None else items),
            *(rows.shape[1], len(asked), k),
        )


def _rounded(rows: Array) -> tuple[Array, Array, Array]:
    """Rows in steps of a 127th of their largest number.

    Returns:
        Int8 ``[rows, width]``, zeros up to a multiple of four; the steps, NaN where a row has what
        is no finite number; the norms of what was lost.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scales = (np.abs(rows).max(axis=1, initial=0) / 127).astype(np.float32)
        scales[~np.isfinite(scales)] = np.nan
        steps = np.nan_to_num(np.rint(rows / scales[:, None]), nan=0, posinf=0, neginf=0)
        lost = np.linalg.norm(rows - steps * scales[:, None], axis=1)
    whole = np.zeros((len(rows), -(-rows.shape[1] // 4) * 4), np.int8)
    whole[:, : rows.shape[1]] = steps
    return whole, scales, lost
