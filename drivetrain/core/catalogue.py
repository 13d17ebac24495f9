"""The items that a served graph ranks: they lie in it, so whoever measures it knows them all."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.core.initializers import initializers
from drivetrain.core.learner_tensors import CATALOGUE as LEARNT
from drivetrain.core.schema import MISSING_INT

if TYPE_CHECKING:
    from drivetrain.core.batch import Array
    from drivetrain.core.graph import Graph

ITEMS = "catalogue/items"
"""The initializer that holds the items, int64 or string ``[n]``; what is missing among them fills
places up and is no item. A graph that is joined behind another has it under a longer name, and one
that learns has its learner's instead, as others may come new behind them."""
COUNTS = "catalogue/counts"
"""The initializer that holds how often each was had in training, int64 ``[n]``."""


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What a graph can recommend.

    Attributes:
        items: int64 or object (strings) ``[items]``.
        counts: int64 ``[items]``: how often each was had in training.
    """

    items: "Array"
    counts: "Array"

    @classmethod
    def of(cls, graph: "Graph") -> "Catalogue | None":
        """The catalogue that lies in a graph, or None where there is none."""
        found = initializers(graph.model, (ITEMS, COUNTS, LEARNT)).arrays
        items, counts = found.get(ITEMS, found.get(LEARNT)), found.get(COUNTS)
        if items is None or counts is None:
            return None
        there = items != (MISSING_INT if items.dtype.kind == "i" else "")
        return cls(items[there], counts[: len(items)][there])
