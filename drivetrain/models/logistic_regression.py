"""Logistic regression: one weight for each column and each value."""

from torch import Tensor, nn

from drivetrain.core.schema import FeatureSchema
from drivetrain.models.embedding import Linear


class LogisticRegressionModule(nn.Module):
    """Logits that are linear in every feature.

    Args:
        features: the fitted features.
        outputs: logits a row.
    """

    def __init__(self, features: FeatureSchema, outputs: int) -> None:
        super().__init__()
        self.linear = Linear(features, outputs)
        self.outputs = outputs

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits ``[rows]``, or ``[rows, outputs]``."""
        logits = self.linear(inputs)
        return logits.squeeze(1) if self.outputs == 1 else logits
