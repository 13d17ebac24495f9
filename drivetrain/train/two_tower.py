"""A strategy that recommends by two towers, one of users and one of items, trained by sampling."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from drivetrain.core.describe import digest
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.seams import Examples, Run, Source
from drivetrain.train.content import Content
from drivetrain.train.recall.method import FromHistory
from drivetrain.train.sampled_softmax import SampledSoftmax
from drivetrain.train.single import Single

if TYPE_CHECKING:
    from drivetrain.core.batch import Array
    from drivetrain.train.recall.graph import Scorer, Serving
    from drivetrain.train.recall.interactions import Interactions
    from drivetrain.train.towers.pairs import Pairs
    from drivetrain.train.towers.towers import Pooling, Towers

POOLINGS = ("mean", "attention")


@dataclass(frozen=True, kw_only=True)
class TwoTower(FromHistory):
    """A user and an item are vectors, and a score is their product: deep match.

    The user's vector is one of their own, and what a stack makes of it, of the system's other
    features and of the items of a history. The item's is one of its own, and what a stack makes of
    its attributes. Both are trained on the rows of the events by a strategy of the one loop, with
    a softmax over the items of the batch and some drawn uniformly. The served graph holds the
    user's tower and the vectors of all items, so that it is exact; a score is a logit of the
    softmax over all items.

    Users without training rows are answered from the other features and the history, where there
    are any, for a share of the rows is trained as if their user was not known (Volkovs et al.,
    DropoutNet, NeurIPS 2017); else by how often items were had.

    Source: Covington et al., Deep Neural Networks for YouTube Recommendations, RecSys 2016; Yi et
    al., Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations, RecSys 2019.

    Attributes:
        history: a raw column of the items that a row's user had last, of the items' own type and
            shape ``[n]``, such as a window with ``stat="recent"``. It is read beside the user, and
            what is in it is left out where ``seen`` says so.
        content: what is said of the items, whose vectors the item's tower takes; None is nothing.
        dim: the width of the vectors.
        hidden: widths of the hidden layers of each tower's stack.
        pooling: how the items of a history become one vector: their ``mean``, or by ``attention``.
        normalize: whether vectors have the length 1, so that a score is a cosine over the
            temperature.
        dropout: the share of the stacks' hidden values that is dropped in training.
        unknown: the share of training rows whose user is hidden where something else speaks of
            them, and of candidates whose item is hidden where attributes do.
        train: trains the towers, with a :class:`SampledSoftmax`. Large tables are trained by the
            rows that a batch takes with ``rows=RowWise()``.
    """

    content: Content | None = None
    dim: int = 64
    hidden: tuple[int, ...] = ()
    pooling: "Pooling" = "mean"
    normalize: bool = True
    dropout: float = 0.0
    unknown: float = 0.1
    train: Single = Single(loss=SampledSoftmax(), epochs=10, batch_size=1024, lr=0.01)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least("dim", 1)
        if self.content is not None:
            if not isinstance(self.content, Content):
                raise wrong("TwoTower.content", type(self.content).__name__, "Content, or None")
            if self.content.target != self.target:
                raise wrong("TwoTower.content.target", self.content.target, repr(self.target))
        if not isinstance(self.hidden, tuple) or any(width < 1 for width in self.hidden):
            raise wrong("TwoTower.hidden", self.hidden, "a tuple of widths of at least 1")
        if self.pooling not in POOLINGS:
            raise unknown("pooling", self.pooling, POOLINGS, "TwoTower")
        for name in ("dropout", "unknown"):
            if not 0 <= getattr(self, name) < 1:
                raise wrong(f"TwoTower.{name}", getattr(self, name), "from 0 to below 1")
        if not isinstance(self.train, Single):
            allowed = "a strategy of the one loop, such as Single(loss=SampledSoftmax())"
            raise wrong("TwoTower.train", type(self.train).__name__, allowed)
        if not isinstance(self.train.loss, SampledSoftmax):
            raise wrong("TwoTower.train.loss", self.train.loss, "SampledSoftmax(…)")
        why = {
            "privacy": "None: a row's gradient is not its own, for it is among others' negatives",
            "prune": "None: the width of the vectors is TwoTower.dim",
            "quantize": "None: dt.Quantize makes the served graph smaller",
            "compile": "False: how many candidates a batch has is known when it comes",
        }
        for name, allowed in why.items():
            if getattr(self.train, name):
                raise wrong(f"TwoTower.train.{name}", getattr(self.train, name), allowed)

    @property
    def distributed(self) -> bool:
        """Whether several processes may train it."""
        return bool(getattr(self.train, "distributed", False))

    @property
    def tables(self) -> tuple[Source, ...]:
        """The sources that it reads beside the events."""
        return () if self.content is None else self.content.tables

    def widened(self, found: "Interactions") -> "Interactions":
        """The training rows, and behind their items those that attributes alone speak of."""
        return found if self.content is None else self.content.widened(found)

    def scorer(
        self, source: Examples, found: "Interactions", run: Run, served: "Serving"
    ) -> "Scorer":
        """Train the towers; what was begun in ``run.directory`` goes on from there.

        Raises:
            ArithmeticError: the loss or a weight is no longer a number.
            InterruptedError: SIGTERM came; a checkpoint was written first.
            ValueError: the strategy cannot train them.
        """
        import torch

        from drivetrain.train.towers.pairs import paired
        from drivetrain.train.towers.served import on_cpu, scorer

        directory = run.directory / f"towers-{digest(self)[:16]}"
        directory.mkdir(parents=True, exist_ok=True)
        pairs = paired(
            source,
            found,
            column=self.user_column(source.features),
            item=self.target,
            history=served.history if self.history is not None else None,
            weight=self.weight,
            directory=directory,
            emit=run.emit,
        )
        towers = self._towers(source, pairs, found.catalogue)
        known = found.had.lengths > 0
        fitted: Any = self.train.fit(towers, pairs, replace(run, directory=directory))
        fitted = on_cpu(fitted)
        fitted.settle(torch.from_numpy(known))
        scale = 1 / self._loss.temperature
        return scorer(fitted, source, found, known, served.spare(found), scale)

    @property
    def _loss(self) -> SampledSoftmax:
        assert isinstance(self.train.loss, SampledSoftmax)
        return self.train.loss

    def _towers(self, source: Examples, pairs: "Pairs", catalogue: "Array") -> "Towers":
        """Towers whose weights are drawn from the seed of the training."""
        import torch

        from drivetrain.train.towers.towers import Shape, Towers

        shape = Shape(
            dim=self.dim,
            hidden=self.hidden,
            pooling=self.pooling,
            normalize=self.normalize,
            dropout=self.dropout,
            unknown=self.unknown,
        )
        column = self.user_column(source.features)
        index = source.features.of("index")
        user = next(f.name for f in index if source.features.slice(f.name).start == column)
        counts = torch.from_numpy(pairs.counts(len(catalogue)))
        content = self.content
        vectors = None if content is None else torch.from_numpy(content.vectors(catalogue))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.train.seed)
            return Towers(pairs.features, user, counts, vectors, shape, self._loss.mixed)
