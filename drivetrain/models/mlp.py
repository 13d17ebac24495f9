"""A multi-layer perceptron over embeddings and numbers, by itself or as an implicit ensemble."""

from torch import Tensor, nn

from drivetrain.core.schema import FeatureSchema
from drivetrain.models.embedding import Inputs, PeriodicColumns
from drivetrain.models.factories import MLP
from drivetrain.models.layers import MemberHead, member_stack, stack


class MLPModule(nn.Module):
    """Embeddings, hidden layers, a head.

    With members above 1 the hidden layers are shared by that many networks, which differ by
    adapters of rank one (Gorishniy et al., "TabM: Advancing Tabular Deep Learning with
    Parameter-Efficient Ensembling", 2024).

    Args:
        features: the fitted features.
        config: the declaration.
    """

    def __init__(self, features: FeatureSchema, config: MLP) -> None:
        super().__init__()
        numeric, width = None, 0
        if config.numeric is not None:
            n, columns = config.numeric, features.dense_width
            numeric, width = (
                PeriodicColumns(columns, n.frequencies, n.sigma, n.dim),
                columns * n.dim,
            )
        self.inputs = Inputs.of(features, config, numeric=numeric, numeric_width=width)
        self.members, self.outputs = config.members, config.outputs
        last = config.hidden[-1] if config.hidden else self.inputs.width
        options = {
            "norm": config.norm,
            "activation": config.activation,
            "dropout": config.dropout,
        }
        if config.members == 1:
            self.hidden = stack(self.inputs.width, config.hidden, **options)
            self.head = nn.Linear(last, config.outputs)
        else:
            self.hidden = member_stack(
                self.inputs.width,
                config.hidden,
                config.members,
                adapters=config.adapters,
                **options,
            )
            self.head = MemberHead(last, config.outputs, config.members)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits ``[rows]``, ``[rows, outputs]``, ``[rows, members]`` or all three."""
        x = self.inputs(inputs)
        if self.members > 1:
            x = x.unsqueeze(1)
        logits = self.head(self.hidden(x))
        return logits.squeeze(-1) if self.outputs == 1 else logits
