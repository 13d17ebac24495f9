"""A loss of several outputs that teach one another: in training each, in serving their mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drivetrain.core.errors import wrong
from drivetrain.train.loss import BinaryCrossEntropy, CrossEntropy, MeanSquaredError

if TYPE_CHECKING:
    from torch import Tensor

    from drivetrain.core.batch import Array


@dataclass(frozen=True)
class SelfDistill:
    """The loss of the mean of a model's outputs, and of each of them toward that mean.

    For a model that answers ``[rows, blocks]``, or ``[rows, blocks, classes]``, such as
    ``FinalNet``. Logits are averaged; the mean's prediction is what every block learns from, and
    no gradient goes through it. What is validated and served is the mean alone.

    Source: Zhu et al., "FINAL: Factorized Interaction Layer for CTR Prediction", SIGIR 2023,
    section 2.2.

    Attributes:
        hard: the loss of the true targets.
        weight: of each block's loss toward the mean.
    """

    hard: BinaryCrossEntropy | CrossEntropy | MeanSquaredError
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not callable(getattr(self.hard, "toward", None)):
            allowed = "BinaryCrossEntropy, CrossEntropy or MeanSquaredError"
            raise wrong("SelfDistill.hard", self.hard, allowed)
        if not self.weight >= 0:
            raise wrong("SelfDistill.weight", self.weight, "a number of 0 or more")

    @property
    def target(self) -> str:
        """The target of the hard loss."""
        return self.hard.target

    def __call__(self, outputs: "Tensor", targets: Mapping[str, "Tensor"]) -> "Tensor":
        """The mean over rows, of the mean's loss and the sum of the blocks'."""
        mean = self._mean(outputs)
        (taught,) = self.hard.predictions(mean.detach()).values()
        blocks = outputs.shape[1]
        toward = self.hard.toward(outputs, taught)  # a mean over the blocks
        return self.hard(mean, targets) + self.weight * blocks * toward

    def toward(self, outputs: "Tensor", teacher: "Tensor", temperature: float = 1.0) -> "Tensor":
        """The mean's loss toward another teacher: see ``distill.Distill``."""
        return self.hard.toward(self._mean(outputs), teacher, temperature)

    def check(self, targets: Mapping[str, "Array"]) -> None:
        """What the hard loss asks of its targets."""
        check: Any = getattr(self.hard, "check", None)
        if check is not None:
            check(targets)

    def predictions(self, outputs: "Tensor") -> dict[str, "Tensor"]:
        """Those of the mean."""
        return self.hard.predictions(self._mean(outputs))

    def scores(self, outputs: "Tensor", targets: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
        """Those of the mean."""
        return self.hard.scores(self._mean(outputs), targets)

    def _mean(self, outputs: "Tensor") -> "Tensor":
        dimensions = 3 if isinstance(self.hard, CrossEntropy) else 2
        if outputs.dim() != dimensions:
            allowed = "[rows, blocks, classes]" if dimensions == 3 else "[rows, blocks]"
            raise wrong("outputs of a model with SelfDistill", tuple(outputs.shape), allowed)
        return outputs.mean(1)
