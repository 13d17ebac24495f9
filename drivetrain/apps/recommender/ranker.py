"""How candidates are ranked: a model, the strategy that trains it, and what it learns from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.metric import Metric, Note
from drivetrain.core.schema import FeatureSchema, Field, Schema
from drivetrain.core.seams import Examples, ModelFactory, Run, Split, Strategy
from drivetrain.train.loss import Listwise
from drivetrain.train.prune import under
from drivetrain.train.single import Single
from drivetrain.train.stopping import EarlyStopping

if TYPE_CHECKING:
    from drivetrain.apps.recommender.candidates import Recalled
    from drivetrain.apps.recommender.lists import Asked
    from drivetrain.core.graph import Graph
    from drivetrain.models.list_ranking import Items
    from drivetrain.train.recall.graph import Scorer, Serving
    from drivetrain.train.recall.interactions import Interactions
    from drivetrain.train.recall.last_rows import Log

Fit = Callable[["Interactions", Run, "Serving"], "Scorer"]
"""Fits recall on some interactions."""
LEARNT = Single(
    loss=Listwise("had"),
    epochs=20,
    batch_size=64,
    lr=3e-3,
    early_stopping=EarlyStopping(patience=3),
)


@dataclass(frozen=True, kw_only=True)
class Ranker:
    """Orders the candidates of a list by a model that sees each with who asks.

    Each user's last training rows are held out, and recall is fitted on those before. It is asked
    as of each row that was held out, and the ranker learns which candidate the row has, from what
    was known at that moment. A model sees the system's features of who asks, those of the
    item, the item itself (``item``), what recall says (``recall``) and, with ``history``, the
    bag of the last items (``history``), which shares positions with ``item``:
    ``Attention(history="history", item="item")`` weighs them by the candidate.

    What the model says is added to recall's score. On validation lists it must put what was had
    higher than recall alone does, or it is left out of the served graph and the run says so; so it
    is where no list has what was had.

    Attributes:
        model: a factory, called with the features of a candidate.
        train: any strategy of torch modules; its loss sees ``had`` ``[candidates]``.
        features: the system's features to rank by; None takes all but the users' own index.
        history: a raw column ``[n]`` of the items that a row's user had last.
        held_out: the share of each user's rows, the last ones, that the ranker learns from.
        lists: about so many at most; of more users some are drawn.
        seed: of those draws and of the model's initial weights.
    """

    model: ModelFactory
    train: Strategy = LEARNT
    features: tuple[str, ...] | None = None
    history: str | None = None
    held_out: float = 0.1
    lists: int = 200_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.lists < 1:
            raise wrong("Ranker.lists", self.lists, "1 or more")
        if not 0 < self.held_out < 1:
            raise wrong("Ranker.held_out", self.held_out, "a share above 0 and below 1")

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that it reads."""
        return () if self.history is None else (self.history,)

    def history_field(self, schema: Schema, found: "Interactions") -> Field | None:
        """The column of the history.

        Raises:
            ValueError: it is absent, or holds something else than items.
        """
        if self.history is None:
            return None
        field = schema.field(self.history, "Ranker.history")
        kind = "string" if found.catalogue.dtype == object else "int64"
        if field.dtype != kind or len(field.shape) != 1 or field.shape[0] is None:
            shown = f"{field.dtype} {list(field.shape)}"
            allowed = f"{kind} [n], as the items are"
            raise wrong(f"Ranker.history, column {field.name!r}", shown, allowed)
        return field

    def asked(self, features: FeatureSchema, user: str) -> FeatureSchema:
        """The features of who asks.

        Raises:
            ValueError: there is no such feature.
        """
        names = [feature.name for feature in features.features]
        for name in self.features or ():
            if name not in names:
                raise unknown("feature", name, names, "Ranker.features")
        chosen = set(self.features) if self.features is not None else {*names} - {user}
        return FeatureSchema(tuple(f for f in features.features if f.name in chosen))

    def fit(
        self,
        asked: FeatureSchema,
        recalled: "Recalled",
        items: "Items",
        fit: Fit,
        source: Examples,
        item: str,
        run: Run,
        *,
        pays: bool = False,
    ) -> "Graph | None":
        """The graph from a list's tensors to scores; None where recall's order is no worse.

        Args:
            asked: the features of who asks.
            recalled: recall as it is served.
            items: their attributes.
            fit: fits recall on other pairs.
            source: the system's examples.
            item: the column of items.
            run: of this training.
            pays: whether it is known to, so that nothing is left out for its figures.
        """
        from drivetrain.apps.recommender.lists import HAD, Lists
        from drivetrain.features.examples import Examples as Kept
        from drivetrain.models.list_ranking import Ranking, Shape
        from drivetrain.train.recall.last_rows import Log
        from drivetrain.train.trained import MODEL, exported

        served = recalled.serving
        width = 0 if recalled.history is None else recalled.history.shape[0] or 0
        shape = Shape(asked, served.k, recalled.width, width)
        model = Ranking(self.model, shape, items, self.seed)
        log = Log(source, served.column, item, recalled.found.catalogue)
        asked_of = self._asked(recalled, fit, log, run)
        lists = Lists(log, chosen_of(source.features, asked), model.features, asked_of)
        directory = run.directory / "ranking"
        lent = replace(run, directory=directory, emit=under("ranking", run.emit))
        examples = Kept(lists, lists, lists.targets, directory / "lists", lent.emit)
        for split in ("train", "validate"):
            if not examples.rows(split):
                text = f"ranking is left out: recall finds nothing of what users had ({split})"
                run.emit(Note(stage="train", text=text))
                return None
        fitted = self.train.fit(model, examples, lent)
        graph = exported(self.train, fitted, model.features.tensors)[MODEL]
        before, after = compared(graph, examples, HAD)
        run.emit(Metric(name="train/recall/ndcg", value=before))
        run.emit(Metric(name="train/ranking/ndcg", value=after))
        if pays or after > before:
            return graph
        text = f"ranking is left out: NDCG {after:.4f}, by recall alone {before:.4f}"
        run.emit(Note(stage="train", text=text))
        return None

    def _asked(self, recalled: "Recalled", fit: Fit, log: "Log", run: Run) -> "dict[Split, Asked]":
        """What is asked for each split of lists."""
        import numpy as np

        from drivetrain.apps.recommender.lists import VALIDATE, Asked
        from drivetrain.train.recall.fusing import drawn

        found = recalled.found
        last = log.last(self.held_out, found.had.rows)
        lent = replace(run, directory=run.directory / "before", emit=under("before", run.emit))
        lent.directory.mkdir(exist_ok=True)
        kept = log.without(last, found)
        served = _without(recalled.serving, kept)
        inner = replace(recalled, serving=served, found=kept, scorer=fit(kept, lent, served))
        early = inner.graph().session()
        every = np.arange(found.had.rows)
        users = drawn(every, np.zeros_like(every), self.seed)
        held = int((found.had.lengths * self.held_out).sum())
        train = Asked("train", early, users < self.lists / max(1, held), last)
        had = log.had("validate", found)
        if not len(had.columns):  # users of whom the ranker is told nothing must do
            validate = replace(train, users=train.users & (users < VALIDATE * train.users.mean()))
            return {
                "train": replace(train, users=train.users & ~validate.users),
                "validate": validate,
            }
        now = replace(recalled, serving=_without(recalled.serving, found)).graph().session()
        asked = users * (had.lengths > 0).sum() < self.lists
        return {"train": train, "validate": Asked("validate", now, asked, had=had)}


def _without(served: "Serving", found: "Interactions") -> "Serving":
    """Serving that leaves out what is in these interactions, if it leaves out anything."""
    return replace(served, out=None if served.out is None else found.had)


def chosen_of(features: FeatureSchema, asked: FeatureSchema) -> dict[str, list[int] | None]:
    """For each tensor of some features the columns of the block that are theirs; None for all."""
    found: dict[str, list[int] | None] = {}
    for name in asked.tensors.names:
        if name not in ("dense", "index"):
            found[name] = None
            continue
        columns: list[int] = []
        for feature in asked.of(name):
            place = features.slice(feature.name)
            columns += range(place.start, place.stop)
        found[name] = columns
    return found


def compared(graph: "Graph", lists: Examples, target: str) -> tuple[float, float]:
    """NDCG@20 of validation lists as recall orders them, and as the graph's scores do."""
    import numpy as np

    session = graph.session()
    (output,) = session.outputs.names
    before: list[Any] = []
    after: list[Any] = []
    for batch in lists.batches("validate", size=512):
        had, scores = batch[target], session.run(batch)[output]
        before.append(_ndcg(had))
        after.append(_ndcg(np.take_along_axis(had, np.argsort(-scores, 1, kind="stable"), 1)))
    if not before:
        return 0.0, 0.0
    return float(np.concatenate(before).mean()), float(np.concatenate(after).mean())


def _ndcg(had: Any, k: int = 20) -> Any:
    """Of each list, whose best comes first, over what of it was had."""
    import numpy as np

    gain = 1 / np.log2(np.arange(2, had.shape[1] + 2))
    count = np.minimum(had.sum(1).astype(np.int64), k)
    return (had[:, :k] @ gain[:k]) / np.cumsum(gain)[np.maximum(count, 1) - 1]
