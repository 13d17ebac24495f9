"""A strategy that recommends by the weighted sum of several methods' scores."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from drivetrain.core.errors import wrong
from drivetrain.core.metric import Emitted, Metric
from drivetrain.core.seams import Examples, Run, Source
from drivetrain.train.recall.method import FromHistory, Recall

if TYPE_CHECKING:
    from drivetrain.train.recall.graph import Scorer, Serving
    from drivetrain.train.recall.interactions import Interactions


@dataclass(frozen=True, kw_only=True)
class Fused(Recall):
    """Several methods as one: a score is the weighted sum of theirs.

    The methods learn from one reading of the rows and answer over one catalogue. For whoever is
    asked, each method's scores are standardized over all items (less their mean, by their
    deviation), so that no method counts more for being loud.

    Weights that are not given are learnt: a part of the training pairs is held out, the methods
    are fitted on the rest, and weights are chosen under which a softmax over the sums gives what
    was held out the greatest likelihood. Then the methods are fitted on all. The trial costs a
    second fit of each method, and 256 MB.

    Attributes:
        methods: two or more, of the same ``target``. Their ``k``, ``user``, ``seen``,
            ``seen_in`` and ``learn_from`` do not matter; those that have a ``weight`` or a
            ``history`` have the same.
        weights: one for each method; None learns them.
        held_out: the share of the training pairs that weights are learnt from, by a hash of the
            pair.
        seed: of that choice.
    """

    methods: tuple[Recall, ...]
    weights: tuple[float, ...] | None = None
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.methods, tuple) or len(self.methods) < 2:
            raise wrong("Fused.methods", self.methods, "a tuple of two methods or more")
        for number, method in enumerate(self.methods):
            where = f"Fused.methods[{number}]"
            if not isinstance(method, Recall) or isinstance(method, Fused):
                raise wrong(where, type(method).__name__, "a recall method that is not fused")
            if method.target != self.target:
                raise wrong(f"{where}.target", method.target, repr(self.target))
            if method.weight not in (None, self.weight):
                raise wrong(f"{where}.weight", method.weight, f"None or {self.weight!r}, as fused")
        if len(self._histories) > 1:
            allowed = "the same for all that have one"
            raise wrong("Fused.methods, history", self._histories, allowed)
        if sum(getattr(method, "online", None) is not None for method in self.methods) > 1:
            raise wrong("Fused.methods, online", "two of them", "one method that goes on to learn")
        if self.weights is not None and len(self.weights) != len(self.methods):
            allowed = f"{len(self.methods)} numbers, one for each method"
            raise wrong("Fused.weights", self.weights, allowed)
        if not 0 < self.held_out < 1:
            raise wrong("Fused.held_out", self.held_out, "a share between 0 and 1")

    @property
    def _histories(self) -> tuple[str | None, ...]:
        """The histories of those methods that can have one, each once."""
        return tuple(dict.fromkeys(m.history for m in self.methods if isinstance(m, FromHistory)))

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that its graph takes beside the features."""
        return tuple(name for name in self._histories if name is not None)

    @property
    def reads(self) -> tuple[str, ...]:
        """The targets that it and the methods read from the events."""
        read = [name for method in self.methods for name in method.reads]
        return tuple(dict.fromkeys([*super().reads, *read]))

    @property
    def tables(self) -> tuple[Source, ...]:
        """The sources that the methods read beside the events."""
        return tuple(table for m in self.methods for table in getattr(m, "tables", ()))

    @property
    def names(self) -> tuple[str, ...]:
        """What the methods are called: each one's type, numbered where there are several."""
        kinds = [type(method).__name__.lower() for method in self.methods]
        return tuple(
            kind if kinds.count(kind) == 1 else f"{kind}{kinds[:at].count(kind) + 1}"
            for at, kind in enumerate(kinds)
        )

    def widened(self, found: "Interactions") -> "Interactions":
        """The training rows with all items that any of the methods knows."""
        for method in self.methods:
            found = method.widened(found)
        return found

    def serving(self, source: Examples, found: "Interactions") -> "Serving":
        """How the sum becomes an answer: with the methods' history, and their room."""
        served = super().serving(source, found)
        for method in self._alike():
            own = replace(method, seen="keep").serving(source, found)
            history = own.history or served.history
            served = replace(served, history=history, room=max(own.room, served.room))
        return served

    def scorer(
        self, source: Examples, found: "Interactions", run: Run, served: "Serving"
    ) -> "Scorer":
        """Learn the weights, and then fit every method on all rows."""
        from drivetrain.train.recall.fusing import Trial, fused

        weights = self.weights
        if weights is None:
            trial = Trial.of(found, self.held_out, self.seed)
            fitted = self._fitted(source, trial.kept, run, served, "trial")
            column = self.user_column(source.features)
            learnt = trial.weights(source, column, served, self.names, fitted, self.seed)
            weights = tuple(float(weight) for weight in learnt)
        for name, weight in zip(self.names, weights, strict=True):
            run.emit(Metric(name=f"train/weight/{name}", value=weight))
        scorers = self._fitted(source, found, run, served, "methods")
        return fused(self.names, scorers, weights, len(found.catalogue))

    def _fitted(
        self, source: Examples, found: "Interactions", run: Run, served: "Serving", part: str
    ) -> "list[Scorer]":
        """The scorers of all methods, each with a directory of its own."""
        scorers: list[Scorer] = []
        plain = found if self.weight is None else replace(found, had=found.had.plain)
        for name, method in zip(self.names, self._alike(), strict=True):
            directory = run.directory / part / name
            directory.mkdir(parents=True, exist_ok=True)

            def emit(item: Emitted, name: str = name) -> None:
                if isinstance(item, Metric):
                    item = replace(item, name=f"{item.name}/{name}")
                if part == "methods" or not isinstance(item, Metric):
                    run.emit(item)

            own = replace(run, directory=directory, emit=emit)
            rows = found if method.weight is not None else plain
            scorers.append(method.scorer(source, rows, own, served))
        return scorers

    def _alike(self) -> list[Recall]:
        """The methods, asked as the sum is."""
        return [replace(method, user=self.user, k=self.k) for method in self.methods]
