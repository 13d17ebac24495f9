"""Which process holds which row of a table, and the values that a row begins with."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from drivetrain.core.errors import wrong

MOST_ROWS = 3_000_000_000
"""Ids are multiplied by a number below the rows of their table, in 63 bits."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
Ids = NDArray[np.int64]
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Spread:
    """A table's ids, shuffled and dealt to shards: each id has one shard and one place there.

    Ids that lie side by side, or at any small step, go to all shards: they are multiplied by about
    the golden section of the rows, modulo the rows, and each shard has one range of what comes out
    (Knuth, The Art of Computer Programming, volume 3, section 6.4). The factor has no divisor in
    common with the rows, so this can be undone, and a place is found by address instead of by a
    search.

    Attributes:
        rows: ids go from 0 to below it.
        shards: how many share them.
    """

    rows: int
    shards: int

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= MOST_ROWS:
            raise wrong("rows of a table", self.rows, f"1 to {MOST_ROWS}")

    @cached_property
    def _factor(self) -> int:
        factor = max(1, round(self.rows * (math.sqrt(5) - 1) / 2))
        while math.gcd(factor, self.rows) != 1:
            factor += 1
        return factor

    def places(self, ids: Ids) -> tuple[Ids, Ids]:
        """The shard of each id, and its place there."""
        mixed = ids * self._factor % self.rows
        if self.shards == 1:
            return np.zeros_like(mixed), mixed
        owners = mixed * self.shards // self.rows
        return owners, mixed - -(-owners * self.rows // self.shards)

    def ids(self, shard: int, places: Ids) -> Ids:
        """The ids at some places of a shard."""
        back = pow(self._factor, -1, self.rows) if self.rows > 1 else 0
        return (places + self._first(shard)) * back % self.rows

    def held(self, shard: int) -> int:
        """How many ids a shard has."""
        return self._first(shard + 1) - self._first(shard)

    def _first(self, shard: int) -> int:
        return -(-shard * self.rows // self.shards)


@dataclass(frozen=True)
class Start:
    """What the rows of a table begin with: drawn for each id by itself, so that it is the same
    whoever asks first, and in which order.

    Attributes:
        kind: ``normal`` with mean ``a`` and deviation ``b``, ``uniform`` from ``a`` to ``b``, or
            ``constant`` ``a``.
        a: see ``kind``.
        b: see ``kind``.
    """

    kind: Literal["normal", "uniform", "constant"]
    a: float = 0.0
    b: float = 1.0

    @property
    def mean(self) -> float:
        """What is known of a row that nobody has seen."""
        return (self.a + self.b) / 2 if self.kind == "uniform" else self.a

    def draw(self, seed: int, ids: Ids, dim: int) -> Rows:
        """The first values ``[ids, dim]``.

        Args:
            seed: of the table.
            ids: which rows.
            dim: the width of a row.
        """
        if self.kind == "constant":
            return np.full((len(ids), dim), self.a, np.float32)
        cells = ids.astype(np.uint64)[:, None] * np.uint64(dim) + np.arange(dim, dtype=np.uint64)
        key = _mixed(np.array([seed % 2**64], np.uint64))
        bits = _mixed(cells * _GOLDEN + key)
        high = ((bits >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32
        if self.kind == "uniform":
            return (self.a + (self.b - self.a) * high).astype(np.float32)
        angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2 * math.pi * 2.0**-32)
        normal = np.sqrt(-2 * np.log(high)) * np.cos(angle)  # Box and Muller, 1958
        return (self.a + self.b * normal).astype(np.float32)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea and Flood, 2014): every bit of x moves every other."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
