"""Items in 8 bits, each with a scale of its own, and what rounding takes from a score at most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

PANELS, SCALES, STEPS, LIMITS = "panels", "scales", "steps", "limits"


def there() -> bool:
    """Whether this processor multiplies bytes (AVX512 VNNI), and the search was compiled."""
    return compiled is not None and bool(compiled.bytes())


@dataclass(frozen=True)
class Asked:
    """Queries as a search takes them.

    Attributes:
        rows: float32 ``[queries, width]``, as they came.
        group: queries that lie side by side: 4, 8 or 12.
        bytes: int8 ``[groups, fours, group, 4]``, zeros beyond the last query.
        sums: int32 ``[groups * group]``: 128 times the sum of each.
        slacks: float32 ``[queries]``: by how much the score in 8 bits of an item that counts may
            be less than that of the last one that does; infinite where a query cannot be rounded.
    """

    rows: Array
    group: int
    bytes: Array
    sums: Array
    slacks: Array

    def __len__(self) -> int:
        return len(self.rows)


class InBytes:
    """Items in 8 bits, for an exact search that reads a quarter of their bytes.

    A dimension is divided by its largest number, so that one of large numbers leaves the others
    their steps; then each item is rounded to steps of a 127th of its largest number. A score in
    8 bits differs from the true one by no more than ``|q| |x - x'| + |q - q'| |x'|``, of which
    :attr:`arrays` have the largest of all items; whatever that leaves possible is scored again in
    float32. Items lie in the order of their scales, which are then much the same in 32 of them.

    Args:
        rows: float32 ``[places, width]``, finite. Read, not copied, by :meth:`place`.
        items: the places before this one are found; the others once they are placed.

    Attributes:
        arrays: what changes, its first dimension pairs of panels (``limits``: one row), so that
            copies are kept up with by the rows of :meth:`place`:
            ``panels`` uint8 ``[pairs, 2, fours, 16, 4]``, 128 added;
            ``scales`` float32 ``[pairs, 32]``, NaN for what is not found;
            ``steps`` float32 ``[pairs]``, one over the largest scale of each;
            ``limits`` float32 ``[1, 2]``, the largest ``|x - x'|`` and ``|x'|``.
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
            STEPS: np.full(pairs, np.finfo(np.float32).max, np.float32),
            LIMITS: np.zeros((1, 2), np.float32),
        }
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
        panels, steps = self.arrays[PANELS], self.arrays[STEPS]
        panels[pair, lane // LANES, :, lane % LANES] = fours.astype(np.uint8)
        self.arrays[SCALES][pair, lane] = scales
        changed = np.unique(pair)
        most = np.fmax(np.fmax.reduce(self.arrays[SCALES][changed], axis=1), 0)
        with np.errstate(divide="ignore", over="ignore"):
            steps[changed] = np.minimum(1 / most, np.finfo(np.float32).max)
        limits = self.arrays[LIMITS]
        norms = np.linalg.norm(whole * scales[:, None], axis=1)
        for column, values in enumerate((lost, norms)):
            limits[0, column] = np.fmax.reduce(values, initial=limits[0, column])
        return {PANELS: changed, SCALES: changed, STEPS: changed, LIMITS: np.zeros(1, np.int64)}

    def asked(self, queries: Array, arrays: Mapping[str, Array] | None = None) -> Asked:
        """Queries as :meth:`search` takes them.

        Args:
            queries: float32 ``[queries, width]``.
            arrays: a copy of :attr:`arrays` that is searched in their stead.
        """
        limits = (self.arrays if arrays is None else arrays)[LIMITS]
        rows = np.ascontiguousarray(queries, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            wide = rows * self.columns
            whole, scales, lost = _rounded(wide)
            most = np.linalg.norm(wide, axis=1) * (limits[0, 0] + _SUMS * limits[0, 1])
            slacks = np.where(scales > 0, 2 * (most + lost * limits[0, 1]) / scales, 0)
        slacks = np.where(np.isfinite(slacks) & np.isfinite(scales), slacks, np.inf)
        count = len(rows)
        groups = max(1, -(-count // 12))
        group = -(-count // groups) + 3 & ~3 or 4
        all_ = np.zeros((groups * group, whole.shape[1]), np.int8)
        all_[:count] = whole
        laid = all_.reshape(groups, group, -1, 4).transpose(0, 2, 1, 3)
        sums = all_.sum(axis=1, dtype=np.int32) * np.int32(128)
        return Asked(rows, group, np.ascontiguousarray(laid), sums, slacks.astype(np.float32))

    def search(
        self,
        asked: Asked,
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
            asked: the queries.
            k: from 1 to the number of items.
            scores: float32 ``[queries, k]``, takes the scores, the best first; where fewer are
                left than ``k`` the others stay as they are.
            places: int32 ``[queries, k]``, takes the places; of equal scores the lesser first.
            never: ascending int32 places for each query that it is not to find; empty: none.
            arrays: a copy of :attr:`arrays` to be searched in their stead.
            rows: the items that it is a copy of.
            items: how many of them are found, where not all are.
        """
        arrays, rows = (
            self.arrays if arrays is None else arrays,
            self._rows if rows is None else rows,
        )
        lengths = [len(each) for each in never] or [0] * len(asked)
        starts = np.zeros(len(asked) + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        compiled.in_bytes(
            *(arrays[PANELS], arrays[SCALES], arrays[STEPS], self.order, rows),
            *(asked.bytes, asked.sums, asked.slacks, asked.rows, starts),
            np.concatenate(never) if starts[-1] else np.zeros(0, np.int32),
            *(scores, places, len(arrays[STEPS]), len(rows) if items is None else items),
            *(rows.shape[1], len(asked), asked.group, k),
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
