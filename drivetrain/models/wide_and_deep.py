"""Wide & Deep: a linear model beside a deep one."""

from torch import Tensor, nn

from drivetrain.core.schema import FeatureSchema
from drivetrain.models.embedding import Inputs, Linear
from drivetrain.models.factories import WideAndDeep
from drivetrain.models.layers import stack


class WideAndDeepModule(nn.Module):
    """The sum of a linear and a deep model's logits (Cheng et al., 2016, section 3.3).

    Args:
        features: the fitted features.
        config: the declaration.
    """

    def __init__(self, features: FeatureSchema, config: WideAndDeep) -> None:
        super().__init__()
        self.wide = Linear(features, config.outputs)
        self.inputs = Inputs.of(features, config)
        self.hidden = stack(
            self.inputs.width,
            config.hidden,
            norm=config.norm,
            activation=config.activation,
            dropout=config.dropout,
        )
        last = config.hidden[-1] if config.hidden else self.inputs.width
        self.head = nn.Linear(last, config.outputs, bias=False)  # the wide part has the bias
        self.outputs = config.outputs

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits ``[rows]``, or ``[rows, outputs]``."""
        logits = self.wide(inputs) + self.head(self.hidden(self.inputs(inputs)))
        return logits.squeeze(1) if self.outputs == 1 else logits
