"""A strategy that recommends what most have had."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drivetrain.core.seams import Examples, Run
from drivetrain.train.recall.method import Recall

if TYPE_CHECKING:
    from drivetrain.core.graph import Graph


@dataclass(frozen=True, kw_only=True)
class Popularity(Recall):
    """What most have had: the same for all, but for what each has had already.

    A score is how often the item was had. It is what every other method is to be held against,
    and what they answer whom they do not know.
    """

    def fit(self, model: Any, source: Examples, run: Run) -> "Graph":
        """Count."""
        import numpy as np

        from drivetrain.train.recall.graph import Asked, Serving
        from drivetrain.train.recall.nodes import Nodes

        found = self.interactions(source, run)

        def score(n: Nodes, asked: Asked) -> str:
            counts = n.held(found.counts.astype(np.float32)[None])
            return n.op("Expand", counts, n.op("Shape", asked.new))

        return Serving(
            index=source.features.tensors.field("index"),
            column=self.user_column(source.features),
            k=self.k,
            exclude=self.seen == "exclude",
        ).graph(found, score)
