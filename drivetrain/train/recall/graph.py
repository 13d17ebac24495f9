"""The served graph of a recall method: who asks to the best items, exactly, in bounded memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.catalogue import COUNTS, ITEMS
from drivetrain.core.graph import Graph
from drivetrain.core.learner_tensors import (
    CATALOGUE,
    FINDINGS,
    FOUND,
    FOUND_SCORES,
    HAD,
    KNOWN,
    LIVE,
    NEW,
    STARTS,
    USER,
)
from drivetrain.core.schema import MISSING_INT, Field
from drivetrain.train.recall.interactions import Interactions, Sparse
from drivetrain.train.recall.nodes import Body, Nodes
from drivetrain.train.recall.slices import Cut, Lists

SCORES = 1 << 23
"""Scores that are held at once: rows go through in parts of so many."""

_FED = (*LIVE, *FINDINGS)
"""What a run may be fed in the stead of what is written."""

Score = Callable[[Nodes, "Asked"], str]
"""Adds a method's nodes: float32 ``[part, items + spare]``, the scores of the rows that are asked.
What stands in the columns behind the items does not matter."""


@dataclass(frozen=True)
class Asked:
    """The tensors that a part of the rows is scored from.

    Attributes:
        user: int64 ``[part]``: positions of the users' index.
        had: int64 ``[part, longest]``: what each has in their profile, with what they had since
            where something learns while it serves; beyond its end, ``items`` or more.
        weights: float32 ``[part, longest]``, 0 beyond the end; the empty string where all are 1.
        new: bool ``[part, 1]``: whose profile is empty.
        once: whether a profile has each item once.
        rows: the further tensors that the method reads, ``[part, ...]`` each, by name.
    """

    user: str
    had: str
    weights: str
    new: str
    once: bool
    rows: Mapping[str, str]


@dataclass(frozen=True)
class Several:
    """Methods whose scores are added up.

    Attributes:
        names: of the methods.
        weights: float64 ``[methods]``: how much each one's scores count.
        parts: adds the nodes of every method's scores, float32 ``[part, items + spare]`` each,
            standardized so that they can be compared with one another.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    parts: Callable[[Nodes, Asked], Sequence[str]]

    def sum(self, n: Nodes, parts: Sequence[str]) -> str:
        """The parts by their weights."""
        each = [
            n.op("Mul", part, n.held(np.array(weight, np.float32)))
            for part, weight in zip(parts, self.weights, strict=True)
        ]
        return n.op("Sum", *each)


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """How a fitted method scores all items, and what its nodes need.

    Attributes:
        score: adds the method's nodes.
        part: the most rows that are scored at once; 1 for methods that go through the profile.
        weighted: whether the weights of a profile matter; where they do not, all are 1.
        rows: further tensors of the features that it reads row by row, such as ``dense``. Each
            part's slices come as ``Asked.rows``; rows that fill a part up hold zeros.
        live: of a method that goes on to learn, the initializers that
            :mod:`drivetrain.core.learner` names, all but those that say what users had. The live
            row of who asks comes as ``Asked.rows["learner/user"]``, the others by their names.
        several: what the score is the sum of, where candidates tell their parts.
    """

    score: Score
    part: int = 256
    weighted: bool = False
    rows: tuple[Field, ...] = ()
    live: Mapping[str, Array] = field(default_factory=dict[str, Array])
    several: Several | None = None


@dataclass(frozen=True)
class Candidates:
    """Tensors of the best items of each row, the best first.

    Attributes:
        places: int64 ``[rows, k]``, positions in the catalogue.
        scores: float32 ``[rows, k]``; minus infinity where no item is left for a place.
        unknown: bool ``[rows, 1]``: of whom nothing is known, so that they are answered with what
            was had most often.
        items: adds the nodes from places to the items themselves.
        recent: int64 ``[rows, n]``, places of the history's items, the number of items for any
            other; the empty string where there is no history.
        parts: float32 ``[rows, k, methods]``: of a scorer of several methods the standardized
            score of each, 0 where no item is left for a place; else the empty string.
    """

    places: str
    scores: str
    unknown: str
    items: Callable[[str], str]
    recent: str = ""
    parts: str = ""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How a method's scores become an answer.

    Attributes:
        index: the tensor that holds users, and how many columns it has.
        column: the users' column in it.
        k: how many items are answered.
        out: what is left out of each user's answer, as ``Interactions.had``; None leaves nothing
            out, nor what is in the history.
        history: the raw column ``[n]`` of a row's last items, which are then the profile.
        room: places behind the items for those that come new while it is served.
    """

    index: Field
    column: int
    k: int
    out: Sparse | None
    history: Field | None = None
    room: int = 0

    def spare(self, found: Interactions) -> int:
        """Columns of scores behind the items: the room for new ones, and one more at least, where
        what pads a list points to."""
        return self.room + max(1, self.k - len(found.catalogue) - self.room)

    def graph(self, found: Interactions, scorer: Scorer) -> Graph:
        """What is asked to ``items`` ``[rows, k]`` and ``scores`` ``[rows, k]``.

        It takes ``index``, the tensors that the method reads and the history.

        The best come first; of equal scores the item that was had more often in training, then
        the lesser one. Places that no item is left for are missing, with a score that is missing.

        Args:
            found: the training rows.
            scorer: the method.
        """
        nodes = Nodes()
        best = self.candidates(nodes, found, scorer)
        nan = nodes.held(np.array(np.nan, np.float32))
        real = nodes.op("Where", nodes.op("IsInf", best.scores), nan, best.scores)
        text = found.catalogue.dtype == object
        return nodes.build(
            self.inputs(scorer),
            [
                (Field("items", "string" if text else "int64", (self.k,)), best.items(best.places)),
                (Field("scores", "float32", (self.k,)), real),
            ],
        )

    def candidates(self, nodes: Nodes, found: Interactions, scorer: Scorer) -> "Candidates":
        """Adds the nodes that find the best items of each row; they read :meth:`inputs`.

        Args:
            nodes: of a graph.
            found: the training rows.
            scorer: the method.
        """
        writer = _Writer(self, found, scorer, nodes)
        places, scores, unknown, *parts = writer.answer()
        counts = np.concatenate([found.counts, np.zeros(self.spare(found), np.int64)])
        nodes.held(counts, COUNTS)
        none = nodes.held(np.array(writer.beyond, np.int64))
        gone = nodes.op("IsInf", scores)
        places = nodes.op("Where", gone, none, places)
        zero, last = nodes.held(np.array(0, np.float32)), nodes.ints(2)
        parts = [nodes.op("Where", nodes.op("Unsqueeze", gone, last), zero, p) for p in parts]
        return Candidates(
            places,
            scores,
            unknown,
            writer.items,
            writer.recent,
            *parts,
        )

    def scored(self, found: Interactions, scorer: Scorer) -> Graph:
        """What is asked to ``parts``, float32 ``[rows, methods, items]``: those of all items.

        Args:
            found: the training rows.
            scorer: of several methods.
        """
        nodes = Nodes()
        (parts,) = _Writer(self, found, scorer, nodes).parts()
        shape = (None, len(found.catalogue))
        return nodes.build(self.inputs(scorer), [(Field("parts", "float32", shape), parts)])

    def inputs(self, scorer: Scorer) -> list[Field]:
        """What the nodes read: each tensor once."""
        history = [self.history] if self.history else []
        others = [field for field in scorer.rows if field.name != self.index.name]
        return [self.index, *others, *history]


def places_of(n: Nodes, items: Field, catalogue: Array) -> str:
    """Adds the look-up of items: their places in the catalogue, int64; its length for any other."""
    text = items.dtype == "string"
    return n.op(
        "LabelEncoder",
        items.name,
        domain="ai.onnx.ml",
        **{"keys_strings" if text else "keys_int64s": catalogue.tolist()},
        values_int64s=list(range(len(catalogue))),
        default_int64=len(catalogue),
    )


class _Writer:
    """Writes the nodes around a method's."""

    def __init__(self, serving: Serving, found: Interactions, scorer: Scorer, nodes: Nodes) -> None:
        self._serving = serving
        self._scorer = scorer
        self._found = found
        self._nodes = nodes
        self._items = len(found.catalogue)
        self._places = self._items + serving.spare(found)
        self.beyond = self._items + serving.room
        names = (STARTS, KNOWN) if scorer.live else ("", "")
        self._had = Lists(nodes, found.had, weighted=scorer.weighted, names=names)
        out = serving.out
        self._out = self._had if out is found.had else None if out is None else Lists(nodes, out)
        for name, array in scorer.live.items():
            nodes.live(name, array) if name in _FED else nodes.held(array, name)
        text = found.catalogue.dtype == object
        nothing = np.full(self._places - self._items, "" if text else MISSING_INT)
        nothing = nothing.astype(found.catalogue.dtype)
        beyond = nodes.held(np.arange(self._items, self._places))
        if NEW in scorer.live:  # the places that are taken point where nobody is answered from
            free = nodes.op("Equal", NEW, nodes.held(nothing[:1]))
            none = nodes.held(np.array(self.beyond, np.int64))
            beyond = nodes.op("Where", free, beyond, none)
        else:
            nodes.held(np.concatenate([found.catalogue, nothing]), ITEMS)
        self._free = nodes.op("Unsqueeze", beyond, nodes.ints(0))
        history = serving.history
        self.recent = "" if history is None else places_of(nodes, history, found.catalogue)

    def items(self, places: str) -> str:
        """What stands at places."""
        n = self._nodes
        if NEW not in self._scorer.live:
            return n.op("Gather", ITEMS, places)
        first, zero = n.held(np.array(self._items, np.int64)), n.held(np.array(0, np.int64))
        last = n.held(np.array(self._items - 1, np.int64))
        trained = n.op("Gather", CATALOGUE, n.op("Min", places, last))
        new = n.op("Gather", NEW, n.op("Max", n.op("Sub", places, first), zero))
        return n.op("Where", n.op("Less", places, first), trained, new)

    def answer(self) -> list[str]:
        """Places in the catalogue, int64 ``[rows, k]``, their scores, whether nothing is known of
        who asks, and the parts of the scores where they have several."""
        several = self._scorer.several
        kinds = ("int64", "float32", "bool", *["float32"] * bool(several))
        return self._over(lambda n, *slices: [*zip(self._best(n, *slices), kinds, strict=True)])

    def parts(self) -> list[str]:
        """The parts of the scores of all items, ``[rows, methods, items]``."""
        several = self._scorer.several
        assert several is not None

        def body(n: Nodes, *slices: str) -> list[tuple[str, str]]:
            asked, _, _ = self._asked(n, *slices)
            each = [n.op("Unsqueeze", p, n.ints(1)) for p in several.parts(n, asked)]
            whole = n.op("Concat", *each, axis=1)
            return [(n.op("Slice", whole, n.ints(0), n.ints(self._items), n.ints(2)), "float32")]

        return self._over(body)

    def _over(self, body: Body) -> list[str]:
        """What the body gives for each part of the rows, put together again."""
        n, serving = self._nodes, self._serving
        one = n.ints(1)
        rows = n.op("Shape", serving.index.name, start=0, end=1)
        most = max(1, min(self._scorer.part, SCORES // self._items))
        part = n.op("Min", n.op("Max", rows, one), n.ints(most))
        parts = n.op("Max", n.op("Div", n.op("Sub", n.op("Add", rows, part), one), part), one)
        more = n.op("Sub", n.op("Mul", parts, part), rows)
        column = n.held(np.array(serving.column, np.int64))
        user = n.op("Gather", serving.index.name, column, axis=1)
        cut = Cut(n, parts, part, more)
        inputs, shapes = [(cut.slices(user, ()), "int64")], list[tuple[int | None, ...]]([()])
        if serving.history is not None:
            none = n.held(np.array(self._items, np.int64))
            inputs.append((cut.slices(self.recent, (None,), none), "int64"))
            shapes.append((None,))
        for each in self._rows():
            tensor = self._of_rows(each.name, rows) if each.name in _FED else each.name
            inputs.append((cut.slices(tensor, each.shape), each.dtype))
            shapes.append(each.shape)

        whole: list[str] = []
        named = f"rows to {most}"  # so many of the rows that all of a graph is asked for
        for each in n.scan(inputs, body, shapes=[(named, *shape) for shape in shapes]):
            inner = n.op("Concat", n.ints(-1), n.op("Shape", each, start=2), axis=0)
            flat = n.op("Reshape", each, inner)
            whole.append(n.op("Slice", flat, n.ints(0), rows, n.ints(0)))
        return whole

    def _rows(self) -> list[Field]:
        """What comes row by row, beside the user and the history."""
        live = self._scorer.live
        user = [Field(USER, "float32", live[USER].shape[1:])] if USER in live else []
        had = [Field(HAD, "int64", live[HAD].shape[1:])] if HAD in live else []
        found = list[Field]()
        if FOUND in live:
            k = live[FOUND].shape[1:]
            found = [Field(FOUND, "int64", k), Field(FOUND_SCORES, "float32", k)]
        return [*self._scorer.rows, *user, *had, *found]

    def _of_rows(self, name: str, rows: str) -> str:
        """A live tensor with a row for each that is asked, where it may have one for all."""
        n = self._nodes
        width = self._scorer.live[name].shape[1]
        return n.op("Expand", name, n.op("Concat", rows, n.ints(width), axis=0))

    def _asked(self, n: Nodes, user: str, *slices: str) -> tuple[Asked, str, str]:
        """What a part is scored from; what its users had; the history's places, where it is one."""
        recent, *others = slices if self._serving.history else ("", *slices)
        rows = dict(zip((field.name for field in self._rows()), others, strict=True))
        had, weights, length = self._had.of(n, user)
        profile = recent
        if not recent and HAD in rows and not weights:
            profile = n.op("Concat", had, rows[HAD], axis=1)
        if not profile:
            return Asked(user, had, weights, n.op("Equal", length, n.ints(0)), True, rows), had, ""
        inside = n.op("Less", profile, n.ints(self._items))
        some = n.op("ReduceMax", n.op("Cast", inside, to=7), n.ints(1), keepdims=1)
        return Asked(user, profile, "", n.op("Equal", some, n.ints(0)), False, rows), had, recent

    def _best(self, n: Nodes, *slices: str) -> list[str]:
        asked, had, recent = self._asked(n, *slices)
        several, parts = self._scorer.several, list[str]()

        def gone_through(n: Nodes) -> tuple[str, str]:
            if several is not None:
                parts.extend(several.parts(n, asked))
                scores = several.sum(n, parts)
            else:
                scores = self._scorer.score(n, asked)
            lowest = n.held(np.array(-np.inf, np.float32))
            never = self._never(n, asked.user, had, recent, asked.rows.get(HAD, ""))
            where = n.op("Concat", *never, axis=1)
            lowest = n.op("Expand", lowest, n.op("Shape", where))
            scores = n.op("ScatterElements", scores, where, lowest, axis=1)
            best, places = n.ops("TopK", scores, n.ints(self._serving.k), outputs=2, axis=1)
            return places, best

        if FOUND in asked.rows:
            before = [asked.rows[name] for name in FINDINGS]
            fed = n.op("GreaterOrEqual", n.op("ReduceMax", FOUND, keepdims=0), n.ints(0))
            places, best = n.either(
                fed, lambda n: [n.op("Identity", x) for x in before], gone_through
            )
        else:
            places, best = gone_through(n)
        found = [places, best, self._unknown(n, asked)]
        if several is not None:
            each = [n.op("GatherElements", part, places, axis=1) for part in parts]
            each = [n.op("Unsqueeze", part, n.ints(2)) for part in each]
            found.append(n.op("Concat", *each, axis=2))
        return found

    def _unknown(self, n: Nodes, asked: Asked) -> str:
        """Of whom nothing is known, neither by training nor a history nor since, ``[part, 1]``."""
        lengths = n.op("Gather", n.held(self._found.had.lengths == 0), asked.user)
        unknown = n.op("And", n.op("Unsqueeze", lengths, n.ints(1)), asked.new)
        if USER in asked.rows:
            first = n.op("Slice", asked.rows[USER], n.ints(0), n.ints(1), n.ints(1))
            unknown = n.op("And", unknown, n.op("IsNaN", first))
        return unknown

    def _never(self, n: Nodes, user: str, had: str, recent: str, since: str) -> list[str]:
        """Places that are not answered, int64 ``[part, some]`` each.

        Args:
            n: takes the nodes.
            user: who asks.
            had: their training rows.
            recent: what they had last.
            since: what they had since the training.
        """
        each = n.op("Concat", n.op("Shape", user), n.ints(1), axis=0)
        never = [n.op("Expand", self._free, each)]
        if self._out is not None:
            out = had if self._out is self._had else self._out.of(n, user)[0]
            never += [self._padded(n, out)]
            never += [self._padded(n, recent)] if recent else []
            never += [since] if since else []
        return never

    def _padded(self, n: Nodes, had: str) -> str:
        """Lists of places whose padding points beyond the items that come new as well."""
        if self.beyond == self._items:
            return had
        inside = n.op("Less", had, n.ints(self._items))
        return n.op("Where", inside, had, n.held(np.array(self.beyond, np.int64)))


def popular(nodes: Nodes, counts: Array, spare: int, asked: Asked, scores: str) -> str:
    """The scores, but for whom nothing is known how often each item was had, float32."""
    often = np.append(counts, np.zeros(spare)).astype(np.float32)
    known = nodes.held(often[None], "recall/popular")
    return nodes.op("Where", asked.new, known, scores)
