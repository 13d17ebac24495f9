"""Optimizers that touch only the rows of a table that have a gradient."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from drivetrain.train.rows.spread import Ids, Rows

_TINY = np.float32(1e-10)


class RowOptimizer(Protocol):
    """Updates rows in place."""

    def widths(self, dim: int) -> Mapping[str, int]:
        """What is remembered of each row: so many numbers under each name, which begin as 0."""
        ...

    def update(
        self,
        values: Rows,
        state: Mapping[str, Rows],
        rows: Ids,
        gradients: Rows,
        lr: float,
        step: int,
    ) -> None:
        """Take one step.

        Args:
            values: ``[held, dim]``.
            state: by name, ``[held, width]``.
            rows: which of those held, each once.
            gradients: ``[rows, dim]``.
            lr: the learning rate.
            step: updates of the table, this one included.
        """
        ...


@dataclass(frozen=True)
class RowSGD:
    """Plain gradient descent."""

    def widths(self, dim: int) -> Mapping[str, int]:
        """Nothing."""
        return {}

    def update(
        self,
        values: Rows,
        state: Mapping[str, Rows],
        rows: Ids,
        gradients: Rows,
        lr: float,
        step: int,
    ) -> None:
        """Take one step."""
        _add(values, rows, gradients * np.float32(-lr))


@dataclass(frozen=True)
class RowAdagrad:
    """Adagrad; on rows without a gradient torch's does nothing either, so the two are equal.

    Source: Duchi et al., Adaptive Subgradient Methods, JMLR 2011.

    Attributes:
        by_row: remember one number for each row, the mean of its squares, instead of ``dim``: a
            seventeenth on top of a row of 16 instead of as much again (row-wise Adagrad; Mudigere
            et al., Software-Hardware Co-design for Fast and Scalable Training of Deep Learning
            Recommendation Models, ISCA 2022).
    """

    by_row: bool = False

    def widths(self, dim: int) -> Mapping[str, int]:
        """The sum of squares."""
        return {"sum": 1 if self.by_row else dim}

    def update(
        self,
        values: Rows,
        state: Mapping[str, Rows],
        rows: Ids,
        gradients: Rows,
        lr: float,
        step: int,
    ) -> None:
        """Take one step."""
        if self.by_row:
            squares: Rows = np.einsum("nd,nd->n", gradients, gradients)[:, None]
            squares /= np.float32(gradients.shape[1])
        else:
            squares = gradients * gradients
        squares += state["sum"].take(rows, 0)
        state["sum"][rows] = squares
        np.sqrt(squares, out=squares)
        squares += _TINY
        change: Rows = gradients / squares
        change *= np.float32(-lr)
        _add(values, rows, change)


@dataclass(frozen=True)
class RowAdam:
    """Adam whose moments of a row rest while it has no gradient, as torch's SparseAdam.

    Source: Kingma and Ba, Adam, ICLR 2015.

    Attributes:
        betas: the decays of both moments.
    """

    betas: tuple[float, float] = (0.9, 0.999)

    def widths(self, dim: int) -> Mapping[str, int]:
        """Both moments."""
        return {"first": dim, "second": dim}

    def update(
        self,
        values: Rows,
        state: Mapping[str, Rows],
        rows: Ids,
        gradients: Rows,
        lr: float,
        step: int,
    ) -> None:
        """Take one step."""
        one, two = self.betas
        first = state["first"].take(rows, 0)
        first += (gradients - first) * np.float32(1 - one)
        second = state["second"].take(rows, 0)
        second += (gradients * gradients - second) * np.float32(1 - two)
        state["first"][rows] = first
        state["second"][rows] = second
        size = lr * math.sqrt(1 - two**step) / (1 - one**step)
        np.sqrt(second, out=second)
        second += np.float32(1e-8)
        change = first / second
        change *= np.float32(-size)
        _add(values, rows, change)


def _add(values: Rows, rows: Ids, change: Rows) -> None:
    """Add to rows; ``change`` is used up. Twice as fast as ``values[rows] += change``."""
    change += values.take(rows, 0)
    values[rows] = change


ROW_OPTIMIZERS: Mapping[str, Callable[[tuple[float, float]], RowOptimizer]] = {
    "rowwise_adagrad": lambda betas: RowAdagrad(by_row=True),
    "adagrad": lambda betas: RowAdagrad(),
    "adam": RowAdam,
    "sgd": lambda betas: RowSGD(),
}
"""By name, from the decays that only Adam has."""
