"""The loss of two towers: a softmax over some of all items, as if it were over all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.core.errors import wrong

if TYPE_CHECKING:
    from torch import Tensor

    from drivetrain.train.towers.softmax import Sampled

WEIGHT = "weight"
"""The target that says how much each row counts, 1 in the mean; none counts all alike."""


@dataclass(frozen=True, kw_only=True)
class SampledSoftmax:
    """Each row's item against those of the batch's other rows, and against some drawn uniformly.

    Scores are corrected by the logarithm of how often an item is to be expected there (log-Q), so
    that what is learnt is the softmax over all items, whose scores hold how popular an item is:
    without it popular items, which are in most batches, would be pushed down. The mean of the
    sum over the candidates is exactly the sum over all items, since what came of a row's own item
    by accident is left out, and the row's own term, which is always there, is not corrected.

    Source: Yi et al., Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
    Recommendations, RecSys 2019; Yang et al., Mixed Negative Sampling for Learning Two-tower Neural
    Networks in Recommendations, WWW 2020 companion.

    Attributes:
        mixed: items that are drawn uniformly for a batch, 0 or more: those that few have had are
            in no other rows.
        temperature: divides the products of vectors, above 0.
    """

    mixed: int = 1024
    temperature: float = 0.2

    def __post_init__(self) -> None:
        if not isinstance(self.mixed, int) or self.mixed < 0:
            raise wrong("SampledSoftmax.mixed", self.mixed, "an integer of 0 or more")
        if not 0 < self.temperature < float("inf"):
            raise wrong("SampledSoftmax.temperature", self.temperature, "a number above 0")

    def __call__(self, outputs: "Sampled", targets: Mapping[str, "Tensor"]) -> "Tensor":
        """The mean over the rows of a batch."""
        from drivetrain.train.towers.softmax import softmax_loss

        return softmax_loss(outputs, 1 / self.temperature, targets.get(WEIGHT))
