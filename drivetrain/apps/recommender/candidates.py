"""The nodes between recall and ranking: candidates, and what a ranker is told of each."""

from dataclasses import dataclass

import numpy as np

from drivetrain.core.graph import Graph
from drivetrain.core.schema import Field
from drivetrain.models.list_ranking import HISTORY, PLACES, RECALL
from drivetrain.train.recall.graph import Candidates, Scorer, Serving, places_of
from drivetrain.train.recall.interactions import Interactions
from drivetrain.train.recall.nodes import Nodes

ALWAYS = 3
"""Numbers of a candidate before those of each method: its score among its list's, how often it was
had, and its place in the list."""


@dataclass(frozen=True, eq=False)
class Recalled:
    """A fitted recall method, ready to add its nodes.

    Attributes:
        serving: how it is asked.
        found: what it learnt from.
        scorer: how it scores.
        history: the raw column of the last items that a ranker is told; None for none.
    """

    serving: Serving
    found: Interactions
    scorer: Scorer
    history: Field | None

    @property
    def inputs(self) -> list[Field]:
        """What the nodes read."""
        found = self.serving.inputs(self.scorer)
        if self.history is not None and self.history.name not in {field.name for field in found}:
            found.append(self.history)
        return found

    @property
    def width(self) -> int:
        """Numbers of a candidate."""
        several = self.scorer.several
        return ALWAYS + (0 if several is None else len(several.names))

    def best(self, n: Nodes) -> Candidates:
        """Adds the nodes that find candidates."""
        return self.serving.candidates(n, self.found, self.scorer)

    def told(self, n: Nodes, best: Candidates) -> dict[str, str]:
        """Adds what a ranker is told of the candidates: tensors by their names in a list.

        ``places`` and ``recall`` float32 ``[rows, candidates, width]``, all 0 where there is no
        candidate; ``history``, places from 1 on, 0 for none.
        """
        none = n.op("IsInf", best.scores)
        there = n.op("Cast", n.op("Not", none), to=1)
        counts = np.log1p(self.found.counts.astype(np.float64))
        spread = (counts - counts.mean()) / max(counts.std(), 1e-6)
        often = np.append(spread, np.zeros(self.serving.spare(self.found))).astype(np.float32)
        place = np.log1p(np.arange(self.serving.k))
        order = ((place - place.mean()) / max(place.std(), 1e-6)).astype(np.float32)
        each = [
            _standardized(n, best.scores, none, there),
            n.op("Mul", n.op("Gather", n.held(often), best.places), there),
            n.op("Mul", n.held(order[None]), there),
        ]
        apart = [n.op("Unsqueeze", tensor, n.ints(2)) for tensor in each]
        apart += [best.parts] if best.parts else []
        items = n.held(np.array(len(self.found.catalogue), np.int64))
        found = {
            # Those that came new while it was served are known by no attribute, like none.
            PLACES: n.op("Min", best.places, items),
            RECALL: n.op("Concat", *apart, axis=2),
        }
        if self.history is not None:
            found[HISTORY] = self._recent(n, self.history, best)
        return found

    def graph(self) -> Graph:
        """What a ranker is told, as a graph of its own."""
        n = Nodes()
        told = self.told(n, self.best(n))
        fields = [
            Field(PLACES, "int64", (self.serving.k,)),
            Field(RECALL, "float32", (self.serving.k, self.width)),
        ]
        if self.history is not None:
            fields.append(Field(HISTORY, "int64", self.history.shape))
        return n.build(self.inputs, [(field, told[field.name]) for field in fields])

    def _recent(self, n: Nodes, history: Field, best: Candidates) -> str:
        """Places of the rows' last items from 1 on, int64 ``[rows, n]``; 0 for none."""
        known = history == self.serving.history  # looked up by recall already
        recent = best.recent if known else places_of(n, history, self.found.catalogue)
        one, beyond = (
            n.held(np.array(number, np.int64)) for number in (1, len(self.found.catalogue) + 1)
        )
        return n.op("Mod", n.op("Add", recent, one), beyond)


def _standardized(n: Nodes, scores: str, none: str, there: str) -> str:
    """Scores less their mean over the list, by their deviation; 0 where there is no candidate."""
    one, axis = n.held(np.array(1, np.float32)), n.ints(1)
    zero = n.held(np.array(0, np.float32))
    count = n.op("Max", n.op("ReduceSum", there, axis, keepdims=1), one)
    real = n.op("Where", none, zero, scores)
    mean = n.op("Div", n.op("ReduceSum", real, axis, keepdims=1), count)
    apart = n.op("Mul", n.op("Sub", real, mean), there)
    square = n.op("Div", n.op("ReduceSum", n.op("Mul", apart, apart), axis, keepdims=1), count)
    tiny = n.held(np.array(1e-12, np.float32))
    return n.op("Div", apart, n.op("Sqrt", n.op("Max", square, tiny)))
