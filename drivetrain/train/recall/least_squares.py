"""Alternating least squares over implicit feedback, each row by conjugate gradients.

A row's system is ``(Y'Y + l2 I + sum of w_i y_i y_i') x = sum of (1 + w_i) y_i`` over what it has
(Hu, Koren and Volinsky, 2008). ``Y'Y + l2 I = L L'`` is the same for all rows. So all are solved
in the coordinates ``z = L' x``, with ``L^-1 y`` for ``y``: there that part is the identity, which
costs nothing to multiply by, and leaves conjugate gradients with fewer directions to find than in
the plain system (Takács, Pilászy and Tikk, 2011). Factors stay in these coordinates in between.

Sides that take turns crawl along valleys. So a half step goes beyond what solves it (successive
over-relaxation): what is minimised is quadratic in one side, so that from where a row was to its
mirror image beyond the solution everything is lower, and conjugate gradients keep this wherever
they stop. To the loss that fifteen plain iterations have it took seven to ten (films and made
interactions); the last iteration is plain, for there is no next one that it would prepare.
"""

from collections.abc import Iterator
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
RELAXATION = 1.6
"""How far half steps go, of the way to what solves them; below 2 each still lowers the loss."""
_LINE = 64
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
        held = _room(rows, -(-factors // LANES) * LANES)
        held[:] = 0
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
        return np.matmul(self.held, wide, out=_room(len(self.held), width))

    def gram(self) -> Array:
        """The factors' products, float64 ``[factors, factors]``."""
        width = self.held.shape[1]
        sums = np.zeros((width, width))
        for first in range(0, len(self.held), _BLOCK):
            block = self.held[first : first + _BLOCK]
            sums += block.T @ block
        size = len(self.turn)
        return self.turn.T @ sums[:size, :size] @ self.turn


def alternate(
    users: Factors, items: Factors, had: Sparse, *, l2: float, steps: int, iterations: int
) -> Iterator[int]:
    """Improve both sides in turn; gives how many iterations are done, after each."""
    for done in range(1, iterations + 1):
        relaxation = RELAXATION if done < iterations else 1.0
        improve(users, items, had, l2=l2, steps=steps, relaxation=relaxation)
        improve(items, users, had.turned, l2=l2, steps=steps, relaxation=relaxation)
        yield done


def improve(
    mine: Factors,
    others: Factors,
    had: Sparse,
    *,
    l2: float,
    steps: int,
    relaxation: float = 1.0,
) -> None:
    """One half step: the factors of one side, given those of the other.

    Args:
        mine: a row for each of ``had``; is changed.
        others: a row for each of its columns.
        had: what each row has; its weights are by how much the confidence exceeds 1.
        l2: above 0.
        steps: of conjugate gradients, from the factors that are there.
        relaxation: how far to go, of the way that they find; above 0 and below 2.
    """
    lower = np.linalg.cholesky(others.gram() + l2 * np.eye(len(others.turn)))
    inverse = np.linalg.inv(lower)
    whitened = others.times(others.turn @ inverse.T)
    mine.held = mine.times(mine.turn @ lower)
    mine.turn = inverse
    if compiled is None:
        _solve(had, whitened, mine.held, steps, relaxation)
        return
    arrays = (had.starts, had.columns, had.weights, whitened, mine.held, whitened.shape[1])
    share(
        lambda first, last: compiled.solve(*arrays, first, last, steps, relaxation),
        had.lengths + 1,
    )


def _room(rows: int, width: int) -> Array:
    """Float32 ``[rows, width]`` that begins with a line of the cache: each vector lies in one."""
    memory = np.empty(rows * width * 4 + _LINE, np.uint8)
    first = -memory.ctypes.data % _LINE
    return memory[first : first + rows * width * 4].view(np.float32).reshape(rows, width)


def _solve(had: Sparse, others: Array, solutions: Array, steps: int, relaxation: float) -> None:
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
            z += np.float32(relaxation) * far[:, None] * p
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
