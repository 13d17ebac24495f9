"""DCN-V2: explicit feature crosses with a deep network, parallel or stacked."""

import torch
from torch import Tensor, nn

from drivetrain.core.schema import FeatureSchema
from drivetrain.models.embedding import Inputs
from drivetrain.models.factories import DCNv2
from drivetrain.models.layers import stack


class Cross(nn.Module):
    """One cross layer, ``x0 * (W x + b) + x`` (Wang et al., 2020, equation 1).

    Args:
        width: of the vector.
        rank: of ``W = U V`` (equation 2); None takes a full matrix.
    """

    def __init__(self, width: int, rank: int | None) -> None:
        super().__init__()
        self.down = None if rank is None else nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(width if rank is None else rank, width)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """Vectors ``[rows, width]`` of one degree more."""
        return torch.addcmul(x, x0, self.up(x if self.down is None else self.down(x)))


class DCNv2Module(nn.Module):
    """Cross layers beside or under a deep network.

    Args:
        features: the fitted features.
        config: the declaration.
    """

    def __init__(self, features: FeatureSchema, config: DCNv2) -> None:
        super().__init__()
        self.inputs = Inputs.of(features, config)
        width = self.inputs.width
        self.crosses = nn.ModuleList(Cross(width, config.rank) for _ in range(config.layers))
        self.hidden = stack(
            width,
            config.hidden,
            norm=config.norm,
            activation=config.activation,
            dropout=config.dropout,
        )
        self.parallel = config.structure == "parallel"
        last = config.hidden[-1] if config.hidden else width
        self.head = nn.Linear(last + width if self.parallel else last, config.outputs)
        self.outputs = config.outputs

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits ``[rows]``, or ``[rows, outputs]``."""
        x0 = self.inputs(inputs)
        x = x0
        for cross in self.crosses:
            x = cross(x0, x)
        x = torch.cat([x, self.hidden(x0)], 1) if self.parallel else self.hidden(x)
        logits = self.head(x)
        return logits.squeeze(1) if self.outputs == 1 else logits
