"""What a declaration of a recall method says, whichever method it is."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.metric import Metric
from drivetrain.core.schema import FeatureSchema, Field
from drivetrain.core.seams import Examples, Run, Split

if TYPE_CHECKING:
    from drivetrain.core.graph import Graph
    from drivetrain.train.recall.graph import Scorer, Serving
    from drivetrain.train.recall.interactions import Interactions

Seen = Literal["exclude", "keep"]


@dataclass(frozen=True, kw_only=True)
class Recall(ABC):
    """Finds, of all items, those that somebody is likeliest to want: what every method has.

    A row of the events says that a user had an item. The user is a feature ``Index``, so the
    server knows who it is asked for; the item is a target, which the server never has. The served
    graph takes the users and answers ``items`` ``[rows, k]``, in the items' own type, the best
    first, and ``scores`` ``[rows, k]``, float32. It goes through all items, and of equal scores
    the item comes first that was had more often, then the lesser one. Whoever is not known gets
    what was had most often. Places that no item is left for are missing.

    Attributes:
        target: the column of items, strings or int64.
        user: the ``Index`` feature that says who; None takes the only index column.
        k: how many items are answered.
        seen: whether what a user had before is left out (``exclude``) or not (``keep``).
        seen_in: the splits whose rows say what a user had before; with ``("train", "validate")``
            the test split is asked as if it came after both.
        learn_from: the splits whose rows are learnt from. ``("train", "validate")`` is for what is
            served, once its options are chosen: it knows all rows before those of the test. No
            figure of validation rows says anything then.
        weight: a further target: how much a row counts, 0 or more, summed over a user's rows with
            one item. None: a user has had an item or not.
    """

    target: str
    user: str | None = None
    k: int = 100
    seen: Seen = "exclude"
    seen_in: tuple[Split, ...] = ("train",)
    learn_from: tuple[Split, ...] = ("train",)
    weight: str | None = None

    own_model: ClassVar[bool] = True
    """A system with this strategy declares no ``model``."""

    def __post_init__(self) -> None:
        if self.seen not in get_args(Seen):
            raise unknown("seen", self.seen, get_args(Seen), type(self).__name__)
        for name in ("seen_in", "learn_from"):
            if getattr(self, name) not in (("train",), ("train", "validate")):
                allowed = "('train',) or ('train', 'validate')"
                raise wrong(f"{type(self).__name__}.{name}", getattr(self, name), allowed)
        self.at_least("k", 1)

    def at_least(self, name: str, least: float) -> None:
        """Check that an option is not too small.

        Raises:
            ValueError: it is.
        """
        value = getattr(self, name)
        if not value >= least:
            raise wrong(f"{type(self).__name__}.{name}", value, f"{least} or more")

    @property
    def reads(self) -> tuple[str, ...]:
        """The targets that it reads from the events itself, which may be text."""
        return (self.target,) if self.weight is None else (self.target, self.weight)

    def build(self, factory: Callable[[], Any] | None, features: FeatureSchema, seed: int) -> None:
        """Nothing, for the method is the model; but it must be known whom it is asked for."""
        self.user_column(features)

    def fit(self, model: Any, source: Examples, run: Run) -> "Graph":
        """Read the training rows, learn from them, and write the graph that serves it."""
        source = self.learnt(source)
        found = self.interactions(source, run)
        served = self.serving(source, found)
        return served.graph(found, self.scorer(source, found, run, served))

    def learnt(self, source: Examples) -> Examples:
        """The examples whose training rows are those that are learnt from."""
        from drivetrain.train.recall.merged import MergedExamples

        return source if self.learn_from == ("train",) else MergedExamples(source, self.learn_from)

    @abstractmethod
    def scorer(
        self, source: Examples, found: "Interactions", run: Run, served: "Serving"
    ) -> "Scorer":
        """Learn from the training rows: what a method implements.

        Args:
            source: for methods that read more than who had what.
            found: the training rows.
            run: of the training.
            served: how the scores become an answer.
        """

    def user_column(self, features: FeatureSchema) -> int:
        """The users' column of the tensor ``index``.

        Raises:
            ValueError: there is no such feature, or several to choose from.
        """
        from drivetrain.train.recall.interactions import only

        names = tuple(feature.name for feature in features.of("index"))
        where = f"{type(self).__name__}.user"
        name = only(names, self.user, where)
        if features.field(name).width != 1:
            raise wrong(where, name, "a feature of one column, such as Index")
        return features.slice(name).start

    def interactions(self, source: Examples, run: Run) -> "Interactions":
        """The training rows, and what there is to say of them."""
        from drivetrain.train.recall.interactions import read

        found = read(
            source,
            column=self.user_column(source.features),
            item=self.target,
            weight=self.weight,
            emit=run.emit,
        )
        found = self.widened(found)
        sizes = {
            "users": int((found.had.lengths > 0).sum()),
            "items": len(found.catalogue),
            "interactions": len(found.had.columns),
        }
        for name, size in sizes.items():
            run.emit(Metric(name=f"train/{name}", value=float(size)))
        return found

    def widened(self, found: "Interactions") -> "Interactions":
        """The training rows with the items that the method knows beyond them: here none."""
        return found

    def serving(self, source: Examples, found: "Interactions") -> "Serving":
        """How the method's scores become an answer."""
        from drivetrain.train.recall.graph import Serving

        column = self.user_column(source.features)
        out = None if self.seen == "keep" else found.had
        if out is not None and len(self.seen_in) > 1:
            out = found.joined(source, column, self.target, self.seen_in[1:])
        index = source.features.tensors.field("index")
        return Serving(index=index, column=column, k=self.k, out=out)


@dataclass(frozen=True, kw_only=True)
class FromHistory(Recall):
    """A method that needs no more of somebody than what they had: new users are served too.

    Attributes:
        history: a raw column of the items that a row's user had last, of the items' own type and
            shape ``[n]``, such as a window with ``stat="recent"``. What is asked for is then
            answered from it instead of the user's training rows; those are still left out where
            ``seen`` says so, and what is in the history is too. None: answers from the training
            rows.
    """

    history: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that its graph takes beside the features."""
        return () if self.history is None else (self.history,)

    def serving(self, source: Examples, found: "Interactions") -> "Serving":
        """How the method's scores become an answer: those of a history, where there is one."""
        served = super().serving(source, found)
        return replace(served, history=self._history_field(source, found))

    def _history_field(self, source: Examples, found: "Interactions") -> Field | None:
        """The history's column.

        Raises:
            ValueError: it is absent, or holds something else than items.
        """
        if self.history is None:
            return None
        where = f"{type(self).__name__}.history"
        field = source.events.schema.field(self.history, where)
        kind = "string" if found.catalogue.dtype == object else "int64"
        if field.dtype != kind or len(field.shape) != 1:
            shown = f"{field.dtype} {list(field.shape)}"
            raise wrong(f"{where}, column {self.history!r}", shown, f"{kind} [n], as the items are")
        return field
