"""DeepFM: a factorization machine and a deep network over the same embeddings."""

import math

import torch
from torch import Tensor, nn

from drivetrain.core.schema import FeatureSchema
from drivetrain.models.embedding import Linear, Tables
from drivetrain.models.factories import DeepFM
from drivetrain.models.layers import stack


class DeepFMModule(nn.Module):
    """First-order weights, pairwise products and a deep network (Guo et al., 2017).

    The fields are the index columns, the bags and the dense columns; the vector of a dense
    column is scaled by its value. Tensors enter the first-order and the deep part, flattened.

    Args:
        features: the fitted features.
        config: the declaration.
    """

    def __init__(self, features: FeatureSchema, config: DeepFM) -> None:
        super().__init__()
        self.first = Linear(features, 1)
        self.tables = Tables(features, config.dim, attention=config.attention)
        columns = features.dense_width
        bound = 1 / math.sqrt(config.dim)
        self.dense = (
            nn.Parameter(torch.empty(columns, config.dim).uniform_(-bound, bound))
            if columns
            else None
        )
        self.flat = [f.name for f in features.of("tensor")]
        width = (self.tables.fields + columns) * config.dim
        width += sum(math.prod(f.shape) for f in features.of("tensor"))
        self.hidden = stack(
            width,
            config.hidden,
            norm=config.norm,
            activation=config.activation,
            dropout=config.dropout,
        )
        last = config.hidden[-1] if config.hidden else width
        self.head = nn.Linear(last, 1, bias=False)  # the first-order part has the bias

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits ``[rows]``."""
        fields: list[Tensor] = []
        if self.tables.table is not None:
            fields.append(self.tables(inputs))
        if self.dense is not None:
            fields.append(inputs["dense"].unsqueeze(2) * self.dense)
        logits = self.first(inputs).squeeze(1)
        deep = [inputs[name].flatten(1) for name in self.flat]
        if fields:
            v = torch.cat(fields, 1) if len(fields) > 1 else fields[0]
            # Rendle, 2010: the sum over pairs is half of (square of sum - sum of squares).
            logits = logits + 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1)
            deep.insert(0, v.flatten(1))
        x = torch.cat(deep, 1) if len(deep) > 1 else deep[0]
        return logits + self.head(self.hidden(x)).squeeze(1)
