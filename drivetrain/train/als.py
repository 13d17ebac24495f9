"""A strategy that recommends by factors of users and items: alternating least squares."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from drivetrain.core.errors import wrong
from drivetrain.core.metric import Metric, Progress
from drivetrain.core.online import Online
from drivetrain.core.seams import Examples, Run
from drivetrain.train.recall.method import Recall

if TYPE_CHECKING:
    from drivetrain.train.recall.graph import Scorer, Serving
    from drivetrain.train.recall.interactions import Interactions
    from drivetrain.train.recall.least_squares import Factors


@dataclass(frozen=True, kw_only=True)
class ALS(Recall):
    """Matrix factorization of implicit feedback (Hu, Koren and Volinsky, ICDM 2008).

    Every pair of a user and an item counts: one that was had wants the score 1 with the
    confidence ``1 + alpha * weight``, every other 0 with the confidence 1. Sides take turns, and
    each row is solved by a few steps of conjugate gradients from where it was, and goes beyond the
    solution (over-relaxation), but for the last time: on films and made interactions ten iterations
    had less loss than fifteen plain ones.

    The served graph multiplies a user's factors with those of every item, so it is exact.

    Attributes:
        factors: numbers for each user and item.
        alpha: how much more sure a pair is that was had, by weight.
        l2: what a factor's square costs, above 0.
        even: how evenly users count: ``alpha`` is weighted by ``n ** -even`` for a user with ``n``
            items, so scaled that its mean over the interactions stays. 0 leaves the items' factors
            to the few who had most.
        iterations: of both sides.
        steps: of conjugate gradients, each time.
        seed: of the first factors.
        online: whether a server goes on to learn from the events that it observes, and how. Each
            pair counts once there and each user alike, so ``weight`` and ``even`` cannot be had
            as well.
    """

    factors: int = 64
    alpha: float = 1.0
    l2: float = 20.0
    even: float = 0.0
    iterations: int = 10
    steps: int = 3
    seed: int = 0
    online: Online | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("factors", "iterations", "steps"):
            self.at_least(name, 1)
        for name in ("alpha", "l2"):
            if not getattr(self, name) > 0:
                raise wrong(f"ALS.{name}", getattr(self, name), "a number above 0")
        self.at_least("even", 0)
        if self.online is not None and self.even:
            raise wrong("ALS.even", self.even, "0 where online is declared")
        if self.online is not None and self.weight is not None:
            raise wrong("ALS.weight", self.weight, "None where online is declared")

    def serving(self, source: Examples, found: "Interactions") -> "Serving":
        """How the scores become an answer: with room for items that come new."""
        served = super().serving(source, found)
        return served if self.online is None else replace(served, room=self.online.capacity)

    def scorer(
        self, source: Examples, found: "Interactions", run: Run, served: "Serving"
    ) -> "Scorer":
        """Factorize the training rows."""
        import numpy as np

        from drivetrain.train.recall.graph import Asked, Scorer
        from drivetrain.train.recall.nodes import Nodes

        users, items = self.factorized(found.had, run)
        known = found.had.lengths > 0
        # A further number for each: what is not known scores every item by how often it was had.
        asking = np.concatenate([users.factors * known[:, None], ~known[:, None]], axis=1)
        asking = asking.astype(np.float32)
        counts = found.counts.astype(np.float32)[:, None]
        answering = np.concatenate([items.factors, counts], axis=1)
        if self.online is not None:
            from drivetrain.train.recall.live import live, score

            told = live(self, self.online, source, found, served, asking, answering)
            return Scorer(score=score, live=told)
        nothing = np.zeros((served.spare(found), self.factors + 1), np.float32)
        columns = np.concatenate([answering, nothing]).T

        def scored(n: Nodes, asked: Asked) -> str:
            who = n.op("Gather", n.held(asking), asked.user)
            return n.op("MatMul", who, n.held(columns))

        return Scorer(score=scored)

    def factorized(self, had: Any, run: Run) -> "tuple[Factors, Factors]":
        """The factors of users and items that :class:`Sparse` rows give."""
        import numpy as np

        from drivetrain.train.recall.interactions import Sparse
        from drivetrain.train.recall.least_squares import Factors, alternate, loss
        from drivetrain.train.recall.meeting import evenly, weighed

        had = Sparse(had.starts, had.columns, had.weights * np.float32(self.alpha), had.wide)
        if self.even:
            had = weighed(had, evenly(had, self.even))
        random = np.random.default_rng(self.seed)
        items = Factors.drawn(had.wide, self.factors, random)
        users = Factors.drawn(had.rows, self.factors, random)
        turns = alternate(
            users, items, had, l2=self.l2, steps=self.steps, iterations=self.iterations
        )
        for done in turns:
            run.emit(Progress(stage="train", done=done, total=self.iterations, unit="iterations"))
        final = loss(users, items, had, l2=self.l2)
        run.emit(Metric(name="train/loss", value=final))
        return users, items
