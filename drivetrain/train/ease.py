"""A strategy that recommends by a linear model of each item from all the others."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drivetrain.core.errors import wrong
from drivetrain.core.seams import Examples, Run
from drivetrain.core.window import Length, microseconds_of
from drivetrain.train.recall.method import FromHistory

if TYPE_CHECKING:
    from drivetrain.train.recall.graph import Scorer, Serving
    from drivetrain.train.recall.interactions import Interactions, Sparse

MOST_ITEMS = 20_000
"""Of a matrix that is inverted: 3.2 GB of float64, twice."""


@dataclass(frozen=True, kw_only=True)
class EASE(FromHistory):
    """The embarrassingly shallow autoencoder, in closed form (Steck, WWW 2019).

    With ``P`` the inverse of ``X'X + l2 I``, the weights between items are ``-P_ij / P_jj``, and
    0 on the diagonal. A score is the profile's row of ``X`` times them. Time grows with the cube
    of the items, memory with their square: up to 20,000 items.

    Attributes:
        l2: how much large weights cost, above 0.
        even: how evenly users count: a row of ``X`` with ``n`` items is weighted by ``n ** -even``,
            so scaled that the rows' interactions count as many as before. 0 leaves ``X'X`` to the
            few who had most, for a user adds ``n ** 2`` pairs to it.
        neighbours: keep only so many weights of each item in the served graph, the largest; None
            keeps all, 4 bytes for each pair of items.
        near: what somebody had within about this length of time belongs together more than what
            they had at all. Beside the users' rows of ``X`` stand those of their stretches of
            time, as sessions stand beside users in the graph of Xiang et al. (KDD 2010);
            ``close`` says how much of ``X'X`` these are. It is about training alone: a score is
            of the whole profile. None: only rows of users.
        time: the column of times, a target; to be had with ``near``.
        close: the share of the stretches in ``X'X``, above 0, at most 1.
    """

    l2: float = 200.0
    even: float = 0.0
    neighbours: int | None = None
    near: Length | None = None
    time: str | None = None
    close: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.l2 > 0:
            raise wrong("EASE.l2", self.l2, "a number above 0")
        self.at_least("even", 0)
        if self.neighbours is not None:
            self.at_least("neighbours", 1)
        if self.near is not None:
            microseconds_of(self.near, "EASE.near")
        if (self.near is None) != (self.time is None):
            given = "the column of times" if self.near else "None where near is None"
            raise wrong("EASE.time", self.time, given)
        if not 0 < self.close <= 1:
            raise wrong("EASE.close", self.close, "a share above 0, at most 1")

    @property
    def reads(self) -> tuple[str, ...]:
        """The targets that it reads from the events itself: the times, too."""
        return super().reads if self.time is None else (*super().reads, self.time)

    def scorer(
        self, source: Examples, found: "Interactions", run: Run, served: "Serving"
    ) -> "Scorer":
        """Solve for the weights.

        Raises:
            ValueError: there are more items than can be.
        """
        from drivetrain.train.recall.from_history import by_neighbours, by_weights, scorer
        from drivetrain.train.recall.meeting import gram, largest

        if len(found.catalogue) > MOST_ITEMS:
            raise wrong("items of EASE", len(found.catalogue), f"{MOST_ITEMS} or fewer")
        weights = closed_form(gram(self._rows(source, found)), self.l2)
        if self.neighbours is None:
            score = by_weights(found, weights, served.spare(found))
        else:
            nearest = largest(weights, self.neighbours)
            score = by_neighbours(found, *nearest, served.spare(found))
        return scorer(self, score)

    def _rows(self, source: Examples, found: "Interactions") -> "Sparse":
        """The rows of ``X``."""
        from drivetrain.train.recall.meeting import evened
        from drivetrain.train.recall.stretches import cut, moments

        had = evened(found.had, self.even)
        if self.near is None or self.time is None:
            return had
        column = self.user_column(source.features)
        times = moments(
            source, found, column=column, item=self.target, time=self.time, where="EASE.time"
        )
        return cut(had, times, microseconds_of(self.near, "EASE.near"), self.close)


def closed_form(gram: Any, l2: float) -> Any:
    """The weights float32 ``[items, items]`` of a Gram matrix ``X'X``, which is overwritten."""
    import numpy as np

    gram[np.diag_indices(len(gram))] += l2
    inverse = np.linalg.inv(gram)
    inverse /= -np.diag(inverse).copy()
    inverse[np.diag_indices(len(inverse))] = 0
    return inverse.astype(np.float32)
