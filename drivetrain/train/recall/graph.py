"""The served graph of a recall method: who asks to the best items, exactly, in bounded memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.catalogue import COUNTS, ITEMS
from drivetrain.core.graph import Graph
from drivetrain.core.schema import MISSING_INT, Field
from drivetrain.train.recall.interactions import Interactions, Sparse
from drivetrain.train.recall.nodes import Nodes

SCORES = 1 << 23
"""Scores that are held at once: rows go through in parts of so many."""

Score = Callable[[Nodes, "Asked"], str]
"""Adds a method's nodes: float32 ``[part, items + spare]``, the scores of the rows that are asked.
What stands in the columns behind the items does not matter."""


@dataclass(frozen=True)
class Asked:
    """The tensors that a part of the rows is scored from.

    Attributes:
        user: int64 ``[part]``: positions of the users' index.
        had: int64 ``[part, longest]``: what each has in their profile; beyond its end, ``items``.
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


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """How a fitted method scores all items, and what its nodes need.

    Attributes:
        score: adds the method's nodes.
        part: the most rows that are scored at once; 1 for methods that go through the profile.
        weighted: whether the weights of a profile matter; where they do not, all are 1.
        rows: further tensors of the features that it reads row by row, such as ``dense``. Each
            part's slices come as ``Asked.rows``; rows that fill a part up hold zeros.
    """

    score: Score
    part: int = 256
    weighted: bool = False
    rows: tuple[Field, ...] = ()


@dataclass(frozen=True)
class Candidates:
    """Tensors of the best items of each row, the best first.

    Attributes:
        places: int64 ``[rows, k]``, positions in the catalogue.
        scores: float32 ``[rows, k]``; minus infinity where no item is left for a place.
        items: adds the nodes from places to the items themselves.
    """

    places: str
    scores: str
    items: Callable[[str], str]


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
    """

    index: Field
    column: int
    k: int
    out: Sparse | None
    history: Field | None = None

    def spare(self, found: Interactions) -> int:
        """Columns of scores behind the items: one at least, where what pads a list points to."""
        return max(1, self.k - len(found.catalogue))

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
        places, scores = writer.answer()
        held = np.concatenate([found.catalogue, writer.nothing])
        counts = np.concatenate([found.counts, np.zeros(len(writer.nothing), np.int64)])
        nodes.held(counts, COUNTS)
        catalogue = nodes.held(held, ITEMS)
        none = nodes.held(np.array(len(found.catalogue), np.int64))
        places = nodes.op("Where", nodes.op("IsInf", scores), none, places)
        return Candidates(places, scores, lambda chosen: nodes.op("Gather", catalogue, chosen))

    def inputs(self, scorer: Scorer) -> list[Field]:
        """What the nodes read: each tensor once."""
        history = [self.history] if self.history else []
        others = [field for field in scorer.rows if field.name != self.index.name]
        return [self.index, *others, *history]


class _Writer:
    """Writes the nodes around a method's."""

    def __init__(self, serving: Serving, found: Interactions, scorer: Scorer, nodes: Nodes) -> None:
        self._serving = serving
        self._scorer = scorer
        self._found = found
        self._nodes = nodes
        self._items = len(found.catalogue)
        text = found.catalogue.dtype == object
        spare = serving.spare(found)
        self.nothing = np.full(spare, "" if text else MISSING_INT, found.catalogue.dtype)
        self._had = _Lists(nodes, found.had, weighted=scorer.weighted)
        out = serving.out
        self._out = self._had if out is found.had else None if out is None else _Lists(nodes, out)

    def answer(self) -> tuple[str, str]:
        """Places in the catalogue, int64 ``[rows, k]``, and their scores."""
        n, serving = self._nodes, self._serving
        one = n.ints(1)
        rows = n.op("Shape", serving.index.name, start=0, end=1)
        most = max(1, min(self._scorer.part, SCORES // self._items))
        part = n.op("Min", n.op("Max", rows, one), n.ints(most))
        parts = n.op("Max", n.op("Div", n.op("Sub", n.op("Add", rows, part), one), part), one)
        more = n.op("Sub", n.op("Mul", parts, part), rows)
        column = n.held(np.array(serving.column, np.int64))
        user = n.op("Gather", serving.index.name, column, axis=1)
        cut = _Cut(n, parts, part, more)
        inputs = [(cut.slices(user, ()), "int64")]
        if serving.history is not None:
            beyond = n.held(np.array(self._items, np.int64))
            inputs.append((cut.slices(self._recent(serving.history), (None,), beyond), "int64"))
        inputs += [(cut.slices(f.name, f.shape), f.dtype) for f in self._scorer.rows]

        def body(inner: Nodes, *slices: str) -> list[tuple[str, str]]:
            return [*zip(self._part(inner, *slices), ("int64", "float32"), strict=True)]

        both = n.scan(inputs, body)
        flat = [n.op("Reshape", each, n.ints(-1, serving.k)) for each in both]
        places, scores = (n.op("Slice", each, n.ints(0), rows, n.ints(0)) for each in flat)
        return places, scores

    def _recent(self, history: Field) -> str:
        """Places of the rows' last items, int64 ``[rows, n]``; the others point beyond."""
        text = history.dtype == "string"
        return self._nodes.op(
            "LabelEncoder",
            history.name,
            domain="ai.onnx.ml",
            **{"keys_strings" if text else "keys_int64s": self._found.catalogue.tolist()},
            values_int64s=list(range(self._items)),
            default_int64=self._items,
        )

    def _part(self, n: Nodes, user: str, *slices: str) -> tuple[str, str]:
        recent, *others = slices if self._serving.history else ("", *slices)
        names = (field.name for field in self._scorer.rows)
        rows = dict(zip(names, others, strict=True))
        had, weights, length = self._had.of(n, user)
        asked = Asked(user, had, weights, n.op("Equal", length, n.ints(0)), True, rows)
        if recent:
            inside = n.op("Less", recent, n.ints(self._items))
            some = n.op("ReduceMax", n.op("Cast", inside, to=7), n.ints(1), keepdims=1)
            asked = Asked(user, recent, "", n.op("Equal", some, n.ints(0)), False, rows)
        scores = self._scorer.score(n, asked)
        spare = np.arange(self._items, self._items + len(self.nothing))[None]
        each = n.op("Concat", n.op("Shape", user), n.ints(1), axis=0)
        never = [n.op("Expand", n.held(spare), each)]
        if self._out is not None:
            never.append(had if self._out is self._had else self._out.of(n, user)[0])
            if recent:
                never.append(recent)
        where = n.op("Concat", *never, axis=1)
        lowest = n.op("Expand", n.held(np.array(-np.inf, np.float32)), n.op("Shape", where))
        scores = n.op("ScatterElements", scores, where, lowest, axis=1)
        best, places = n.ops("TopK", scores, n.ints(self._serving.k), outputs=2, axis=1)
        return places, best


@dataclass(frozen=True)
class _Cut:
    """Cuts tensors into ``parts`` of ``part`` rows each, ``more`` rows filling the last one up."""

    nodes: Nodes
    parts: str
    part: str
    more: str

    def slices(self, tensor: str, shape: Sequence[int | None], fill: str = "") -> str:
        """``[rows, *shape]`` to ``[parts, part, *shape]``; what is filled up is 0 or ``fill``."""
        n, inner = self.nodes, [0] * len(shape)
        pads = n.op("Concat", n.ints(0, *inner), self.more, *[n.ints(0)] * len(shape), axis=0)
        padded = n.op("Pad", tensor, pads, *[fill] * bool(fill))
        ends = [n.op("Shape", tensor, start=1)] if shape else []
        return n.op("Reshape", padded, n.op("Concat", self.parts, self.part, *ends, axis=0))


class _Lists:
    """A compressed matrix in the graph, whose rows come side by side.

    Args:
        nodes: of the graph.
        matrix: the rows.
        weighted: whether their weights are in it too.
    """

    def __init__(self, nodes: Nodes, matrix: Sparse, *, weighted: bool = False) -> None:
        # The entry behind the last one stands for nothing had.
        columns = np.append(matrix.columns, np.int32(matrix.wide))
        weights = np.append(matrix.weights, np.float32(0))
        self._starts, self._columns = nodes.held(matrix.starts), nodes.held(columns)
        self._weights = nodes.held(weights) if weighted else ""
        self._behind = nodes.held(np.array(len(matrix.columns), np.int64))
        self._zero, self._one = (nodes.held(np.array(x, np.int64)) for x in (0, 1))

    def of(self, n: Nodes, row: str) -> tuple[str, str, str]:
        """Columns ``[part, longest]``, ``wide`` beyond a row's end; weights; lengths ``[part, 1]``.

        Args:
            n: takes the nodes.
            row: int64 ``[part]``.
        """
        start = n.op("Gather", self._starts, row)
        end = n.op("Gather", self._starts, n.op("Add", row, n.ints(1)))
        length = n.op("Unsqueeze", n.op("Sub", end, start), n.ints(1))
        longest = n.op("ReduceMax", length, keepdims=0)
        step = n.op("Unsqueeze", n.op("Range", self._zero, longest, self._one), n.ints(0))
        at = n.op("Add", n.op("Unsqueeze", start, n.ints(1)), step)
        at = n.op("Where", n.op("Less", step, length), at, self._behind)
        had = n.op("Cast", n.op("Gather", self._columns, at), to=7)
        return had, n.op("Gather", self._weights, at) if self._weights else "", length


def popular(nodes: Nodes, counts: Array, spare: int, asked: Asked, scores: str) -> str:
    """The scores, but for whom nothing is known how often each item was had, float32."""
    often = np.append(counts, np.zeros(spare)).astype(np.float32)
    known = nodes.held(often[None], "recall/popular")
    return nodes.op("Where", asked.new, known, scores)
