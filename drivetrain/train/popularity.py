"""A strategy that recommends what most have had."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.core.seams import Examples, Run
from drivetrain.train.recall.method import Recall

if TYPE_CHECKING:
    from drivetrain.train.recall.graph import Scorer, Serving
    from drivetrain.train.recall.interactions import Interactions


@dataclass(frozen=True, kw_only=True)
class Popularity(Recall):
    """What most have had: the same for all, but for what each has had already.

    A score is how often the item was had. It is what every other method is to be held against,
    and what they answer whom they do not know.
    """

    def scorer(
        self, source: Examples, found: "Interactions", run: Run, served: "Serving"
    ) -> "Scorer":
        """Count."""
        import numpy as np

        from drivetrain.train.recall.graph import Asked, Scorer
        from drivetrain.train.recall.nodes import Nodes

        counts = np.append(found.counts, np.zeros(served.spare(found))).astype(np.float32)

        def score(n: Nodes, asked: Asked) -> str:
            return n.op("Expand", n.held(counts[None]), n.op("Shape", asked.new))

        return Scorer(score=score)
