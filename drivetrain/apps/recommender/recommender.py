"""The strategy of a whole recommender: recall, ranking and re-ranking in one served graph."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from drivetrain.apps.recommender.ranker import Ranker
from drivetrain.core.errors import wrong
from drivetrain.core.schema import FeatureSchema
from drivetrain.core.seams import Examples, Feature, Run, Source
from drivetrain.train.fused import Fused
from drivetrain.train.prune import under
from drivetrain.train.recall.method import Recall
from drivetrain.train.rerank import steps

if TYPE_CHECKING:
    from drivetrain.apps.recommender.answer import Answer
    from drivetrain.apps.recommender.candidates import Recalled
    from drivetrain.core.batch import Array
    from drivetrain.core.graph import Graph
    from drivetrain.train.recall.interactions import Interactions


@dataclass(frozen=True, kw_only=True)
class Recommender:
    """Finds candidates among all items, ranks them, and chooses what is answered.

    The served graph takes the columns of the system's features and those named here, and answers,
    for each row ``[k]``, the best first:

    - ``items`` in their own type, missing where no item is left for a place;
    - ``scores`` float32: the ranker's, or recall's without one; missing with its item;
    - ``reasons``: the name of the recall method that speaks most for an item, or ``popular`` for
      whom nothing is known of; the empty string without an item;
    - ``propensities`` float32: how likely a place was to be answered so, given those before it: 1
      where nothing is drawn; missing with its item.

    Attributes:
        target: the column of items, strings or int64: recall's.
        recall: finds candidates.
        k: how many items are answered.
        candidates: how many are ranked.
        items: a table with a row for each item, found by the column ``target``.
        item_features: of its columns; their statistics are those of the catalogue's items.
        ranking: orders the candidates; None leaves recall's order.
        rerank: filters, diversity and exploration.
        limit: a raw int64 column that says how many items a request wants, ``k`` at most: the
            places behind are missing. None, and where it is missing: ``k``.
    """

    target: str
    recall: Recall
    k: int = 20
    candidates: int = 200
    items: Source | None = None
    item_features: tuple[Feature, ...] = ()
    ranking: Ranker | None = None
    rerank: tuple[steps.Rerank, ...] = ()
    limit: str | None = None

    own_model: ClassVar[bool] = True
    """A system with this strategy declares no ``model``."""

    def __post_init__(self) -> None:
        if self.recall.target != self.target:
            raise wrong("Recommender.recall, target", self.recall.target, repr(self.target))
        if self.k < 1:
            raise wrong("Recommender.k", self.k, "1 or more")
        if self.candidates < self.k:
            raise wrong("Recommender.candidates", self.candidates, f"k or more, which is {self.k}")
        for name in ("item_features", "rerank"):
            if not isinstance(getattr(self, name), tuple):
                raise wrong(f"Recommender.{name}", getattr(self, name), "a tuple")
        steps.check(self.rerank, "Recommender.rerank")
        if self.items is None and (self.item_features or steps.attributes(self.rerank)):
            raise wrong("Recommender.items", None, "a table, for its columns are asked for")

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that its graph takes beside the features."""
        found: tuple[str, ...] = getattr(self.recall, "columns", ())
        if self.ranking is not None:
            found += self.ranking.columns
        found += steps.columns(self.rerank)
        found += () if self.limit is None else (self.limit,)
        return tuple(dict.fromkeys(found))

    @property
    def tables(self) -> tuple[Source, ...]:
        """The sources that it reads beside the events."""
        own = () if self.items is None else (self.items,)
        return (*own, *getattr(self.recall, "tables", ()))

    @property
    def reads(self) -> tuple[str, ...]:
        """The targets that it reads from the events itself, which may be text."""
        return self.recall.reads

    def build(self, factory: Callable[[], Any] | None, features: FeatureSchema, seed: int) -> None:
        """Nothing but to hold the features against what recall and ranking ask of them."""
        self.recall.build(factory, features, seed)
        self._asked(features)

    def fit(self, model: Any, source: Examples, run: Run) -> "Graph":
        """Learn recall from the training rows, and ranking from what recall finds without some.

        Where recall learns from validation rows too, it is first seen whether ranking pays, with
        what learnt from the training rows alone; then both learn from all.
        """
        learnt, pays = self.recall.learnt(source), False
        if learnt is not source and self.ranking is not None:
            trial = replace(run, directory=run.directory / "trial", emit=under("trial", run.emit))
            trial.directory.mkdir(exist_ok=True)
            pays = self._ranked(source, self._recalled(source, trial), trial) is not None
            if not pays:
                return replace(self, ranking=None).fit(model, source, run)
        fitted = self._recalled(learnt, run)
        ranked = self._ranked(learnt, fitted, run, pays=pays)
        return self._answer(learnt, fitted[1], self._asked(source.features), ranked).graph()

    def _recalled(self, source: Examples, run: Run) -> "tuple[Recall, Recalled]":
        """Recall that has learnt, and as it was declared but for weights that are known now."""
        from drivetrain.apps.recommender.candidates import Recalled

        method = replace(self.recall, k=self.candidates)
        found = method.interactions(source, run)
        served = method.serving(source, found)
        scorer = method.scorer(source, found, run, served)
        if isinstance(method, Fused) and scorer.several is not None:  # weights are learnt once
            method = replace(method, weights=scorer.several.weights)
        ranking, schema = self.ranking, source.events.schema
        history = None if ranking is None else ranking.history_field(schema, found)
        return method, Recalled(served, found, scorer, history)

    def _ranked(
        self, source: Examples, fitted: "tuple[Recall, Recalled]", run: Run, pays: bool = False
    ) -> "Graph | None":
        """The ranker's graph; None where there is none, or it does not pay."""
        from drivetrain.apps.recommender.items import described

        if self.ranking is None:
            return None
        method, recalled = fitted
        items = described(recalled.found.catalogue, self.target, self.items, self.item_features)
        return self.ranking.fit(
            self._asked(source.features),
            recalled,
            items,
            partial(method.scorer, source),
            source,
            self.target,
            run,
            pays=pays,
        )

    def _asked(self, features: FeatureSchema) -> FeatureSchema:
        """The features of who asks that the ranker sees."""
        if self.ranking is None:
            return FeatureSchema(())
        index = features.of("index")
        user = self.recall.user or (index[0].name if len(index) == 1 else "")
        return self.ranking.asked(features, user)

    def _answer(
        self, source: Examples, recalled: "Recalled", asked: FeatureSchema, ranked: "Graph | None"
    ) -> "Answer":
        from drivetrain.apps.recommender.answer import Answer, likeness

        diverse = any(isinstance(step, steps.Diverse) for step in self.rerank)
        return Answer(
            recalled,
            source.features,
            asked,
            ranked,
            self.k,
            self.rerank,
            source.events.schema,
            self._attributes(recalled.found),
            likeness(recalled.found) if diverse else None,
            self.limit,
            type(self.recall).__name__.lower(),
        )

    def _attributes(self, found: "Interactions") -> "dict[str, Array]":
        """The columns of the items' table that filters read, in the catalogue's order."""
        from drivetrain.apps.recommender.items import held

        names = steps.attributes(self.rerank)
        if self.items is None or not names:
            return {}
        rows = held(self.items, names, self.target, found.catalogue)
        return {name: rows[name][:-1] for name in names}
