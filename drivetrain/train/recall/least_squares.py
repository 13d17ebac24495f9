"""Alternating least squares over implicit feedback, each row by conjugate gradients.

A row's system is ``(Y'Y + l2 I + sum of w_i y_i y_i') x = sum of (1 + w_i) y_i`` over what it has
(Hu, Koren and Volinsky, 2008). ``Y'Y + l2 I = L L'`` is the same for all rows. So all are solved
in the coordinates ``z = L' x``, with ``L^-1 y`` for ``y``: there that part is the identity, which
costs nothing to multiply by, and leaves conjugate gradients with fewer directions to find than in
the plain system (Takács, Pilászy and Tikk, 2011). Factors stay in these coordinates in between.
"""

from dataclasses import dataclass

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.train.native import recall as compiled
from drivetrain.train.recall.interactions import Sparse
from drivetrain.train.recall.sharing import share

LANES = 16
"""The compiled part takes vectors of whole sixteens."""
ENTRIES = 1 << 16
"""Entries whose factors numpy holds at once, where nothing is compiled."""
_BLOCK = 1 << 16
"""Rows that are multiplied at once: sums of more are kept in float64."""


@dataclass(eq=False)
class Factors:
    """The factors of one side, in the coordinates of its last half step.

    Attributes:
        held: float32 ``[rows, width]``, ``width`` the next multiple of 16; zeros fill it up.
        turn: float64 ``[factors, factors]``: ``held @ turn`` are the factors.
    """

    held: Array
    turn: Array

    @classmethod
    def drawn(cls, rows: int, factors: int, random: np.random.Generator) -> "Factors":
        """Small random factors."""
        held = np.zeros((rows, -(-factors // LANES) * LANES), np.float32)
        held[:, :factors] = random.standard_normal((rows, factors), np.float32)
        held *= np.float32(0.1 / factors**0.5)
        return cls(held, np.eye(factors))

    @property
    def factors(self) -> Array:
        """Float32 ``[rows, factors]``."""
        return self.times(self.turn)[:, : len(self.turn)]

    def times(self, matrix: Array) -> Array:
        """``held`` by ``[factors, factors]``, as wide as ``held``."""
        size, width = len(matrix), self.held.shape[1]
        wide = np.zeros((width, width), np.float32)
        wide[:size, :size] = matrix
        return self.held @ wide

    def gram(self) -> Array:
        """The factors' products, float64 ``[factors, factors]``."""
        width = self.held.shape[1]
        sums = np.zeros((width, width))
        for first in range(0, len(self.held), _BLOCK):
            block = self.held[first : first + _BLOCK]
            sums += block.T @ block
        size = len(self.turn)
        return self.turn.T @ sums[:size, :size] @ self.turn


def improve(mine: Factors, others: Factors, had: Sparse, *, l2: float, steps: int) -> None:
    """One half step: the factors of one side, given those of the other.

    Args:
        mine: a row for each of ``had``; is changed.
        others: a row for each of its columns.
        had: what each row has; its weights are by how much the confidence exceeds 1.
        l2: above 0.
        steps: of conjugate gradients, from the factors that are there.
    """
    lower = np.linalg.cholesky(others.gram() + l2 * np.eye(len(others.turn)))
    inverse = np.linalg.inv(lower)
    whitened = others.times(others.turn @ inverse.T)
    mine.held = mine.times(mine.turn @ lower)
    mine.turn = inverse
    if compiled is None:
        _solve(had, whitened, mine.held, steps)
        return
    arrays = (had.starts, had.columns, had.weights, whitened, mine.held, whitened.shape[1])
    share(lambda first, last: compiled.solve(*arrays, first, last, steps), had.lengths + 1)


def _solve(had: Sparse, others: Array, solutions: Array, steps: int) -> None:
    """``(I + sum of w y y') z = sum of (1 + w) y`` for every row, from the ``z`` that is there."""
    for first, last in had.spans(ENTRIES):
        system = _Rows(had, others, first, last)
        z = solutions[first:last]
        r = -z
        system.add(z, 1.0, -1.0, r)
        p = r.copy()
        left = np.einsum("ij,ij->i", r, r)
        for _ in range(steps):
            going = left > 1e-20
            q = p.copy()
            system.add(p, 0.0, 1.0, q)
            far = np.where(going, left / np.where(going, np.einsum("ij,ij->i", p, q), 1), 0)
            z += far[:, None] * p
            r -= far[:, None] * q
            now = np.einsum("ij,ij->i", r, r)
            p = r + np.where(going, now / np.where(going, left, 1), 0)[:, None] * p
            left = np.where(going, now, left)


class _Rows:
    """The entries of rows from ``first`` to below ``last``, with the factors that they name."""

    def __init__(self, had: Sparse, others: Array, first: int, last: int) -> None:
        span = slice(had.starts[first], had.starts[last])
        self._y, self._w = others[had.columns[span]], had.weights[span]
        self._row = np.repeat(np.arange(last - first), had.lengths[first:last])
        self._filled = np.flatnonzero(had.lengths[first:last])
        self._begin = had.starts[first:last][self._filled] - had.starts[first]

    def add(self, x: Array, base: float, slope: float, into: Array) -> None:
        """Add the sum over a row's entries of ``(base (1 + w) + slope w (y . x)) y``."""
        score = np.einsum("ij,ij->i", self._y, x[self._row])
        factor = base * (1 + self._w) + slope * self._w * score
        if len(self._filled):
            into[self._filled] += np.add.reduceat(factor[:, None] * self._y, self._begin)


def loss(users: Factors, items: Factors, had: Sparse, *, l2: float) -> float:
    """What is minimised, over the sum of all confidences: a mean squared error with the penalty.

    The sum over all pairs, had or not, of ``c (p - x·y)²``, ``p`` 1 where the pair is had and 0
    where it is not, ``c`` 1 plus the pair's weight; and ``l2`` times all factors' squares.
    """
    x, y = users.factors, items.factors
    gram_x, gram_y = users.gram(), items.gram()
    total = float((gram_x * gram_y).sum() + l2 * (np.trace(gram_x) + np.trace(gram_y)))
    for first, last in had.spans(_BLOCK):
        span = slice(had.starts[first], had.starts[last])
        row = np.repeat(np.arange(first, last), had.lengths[first:last])
        score = np.einsum("ij,ij->i", x[row], y[had.columns[span]]).astype(np.float64)
        sure = 1 + had.weights[span].astype(np.float64)
        total += float((sure * (1 - score) ** 2 - score**2).sum())
    confidence = had.rows * had.wide + float(had.weights.sum(dtype=np.float64))
    return total / confidence
