"""FinalNet: blocks of factorized interaction layers, which teach one another."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drivetrain.core.schema import FeatureSchema
from drivetrain.models.embedding import Inputs
from drivetrain.models.factories import FinalNet
from drivetrain.models.layers import ACTIVATION, normalisation


class FactorizedInteraction(nn.Module):
    """``h_1 + … + h_n``: ``h_1`` is linear, each further one is the one before times a gate.

    Zhu et al., 2023, section 2.1: ``h_i = h_{i-1} * f(V_i x + c_i)``. One matrix holds all of them.

    Args:
        width: of the input.
        size: of the output.
        factors: ``n``.
        activation: ``f``.
    """

    def __init__(self, width: int, size: int, factors: int, activation: str) -> None:
        super().__init__()
        self.linear = nn.Linear(width, size * factors)
        self.activation = ACTIVATION[activation]()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, size]`` from ``[rows, width]``."""
        total, *gates = self.linear(x).chunk(self.factors, 1)
        power = total
        for gate in gates:
            power = power * self.activation(gate)
            total = total + power
        return total


class FieldGate(nn.Module):
    """Embeddings beside themselves scaled, each number by a linear map over the fields.

    Args:
        spans: where the embeddings of each width lie: first column, fields, width of a field.
    """

    def __init__(self, spans: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.spans = tuple(spans)
        self.gates = nn.ModuleList(nn.Linear(fields, fields) for _, fields, _ in spans)
        self.more: int = sum(fields * dim for _, fields, dim in spans)

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, width + more]`` from ``[rows, width]``."""
        parts = [x]
        for (start, fields, dim), gate in zip(self.spans, self.gates, strict=True):
            vectors = x[:, start : start + fields * dim].unflatten(1, (fields, dim))
            gates = gate(vectors.transpose(1, 2)).transpose(1, 2)
            parts.append((vectors * gates).flatten(1))
        return torch.cat(parts, 1)


class FinalNetModule(nn.Module):
    """Blocks over the same inputs, each with a head.

    Args:
        features: the fitted features.
        config: the declaration.
    """

    def __init__(self, features: FeatureSchema, config: FinalNet) -> None:
        super().__init__()
        self.inputs = Inputs.of(features, config)
        width = self.inputs.width
        gated = config.gate and self.inputs.spans
        self.gate = FieldGate(self.inputs.spans) if gated else None
        blocks: list[nn.Module] = []
        heads: list[nn.Module] = []
        for number, sizes in enumerate(config.blocks):
            first = width if number or self.gate is None else width + self.gate.more
            blocks.append(_block(first, sizes, config))
            heads.append(nn.Linear(sizes[-1], config.outputs))
        self.blocks = nn.ModuleList(blocks)
        self.heads = nn.ModuleList(heads)
        self.outputs = config.outputs

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits ``[rows, blocks]``, or ``[rows, blocks, outputs]``; of one block without it."""
        x = self.inputs(inputs)
        first = x if self.gate is None else self.gate(x)
        logits = [
            head(block(x if number else first))
            for number, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True))
        ]
        joined = torch.stack(logits, 1) if len(logits) > 1 else logits[0]
        return joined.squeeze(-1) if self.outputs == 1 else joined


def _block(width: int, sizes: Sequence[int], config: FinalNet) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in sizes:
        layers.append(FactorizedInteraction(width, size, config.factors, config.activation))
        layers += normalisation(size, config.norm)
        if config.dropout:
            layers.append(nn.Dropout(config.dropout))
        width = size
    return nn.Sequential(*layers)
