"""A strategy that recommends what is had by those who had the same things."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.core.seams import Examples, Run
from drivetrain.train.recall.method import FromHistory

if TYPE_CHECKING:
    from drivetrain.train.recall.graph import Scorer, Serving
    from drivetrain.train.recall.interactions import Interactions


@dataclass(frozen=True, kw_only=True)
class ItemNeighbours(FromHistory):
    """Item-item neighbours by cosine (Deshpande and Karypis, "Item-based top-N", 2004).

    Two items are as alike as ``x · y / (|x| |y| + shrink)``, where ``x`` and ``y`` are their
    columns of who had them. Of each item the ``neighbours`` most alike are kept, equals by how
    often they were had. A score is the sum over the profile of how alike its items are to one.
    Training takes time in proportion to the sum of the squares of the users' rows, and memory to
    the rows and ``items * neighbours``.

    Attributes:
        neighbours: how many of each item are kept.
        shrink: doubt in what few had together, 0 or more.
    """

    neighbours: int = 100
    shrink: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least("neighbours", 1)
        self.at_least("shrink", 0)

    def scorer(
        self, source: Examples, found: "Interactions", run: Run, served: "Serving"
    ) -> "Scorer":
        """Find each item's neighbours."""
        from drivetrain.train.recall.from_history import by_neighbours, scorer
        from drivetrain.train.recall.meeting import nearest

        near = nearest(found.had, self.neighbours, self.shrink)
        return scorer(self, by_neighbours(found, *near, served.spare(found)))
