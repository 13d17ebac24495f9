"""MaskNet: layers whose inputs are multiplied with masks made from the whole row."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drivetrain.core.schema import FeatureSchema
from drivetrain.models.embedding import Inputs
from drivetrain.models.factories import MaskNet
from drivetrain.models.layers import ACTIVATION, stack


class FieldNorm(nn.Module):
    """Layer normalisation of each embedding by itself (Wang et al., 2021, equation 6).

    Numbers and tensors pass: a single number that is normalised says nothing any more.

    Args:
        spans: where the embeddings of each width lie: first column, fields, width of a field;
            fields of width 1 pass too.
        width: of the whole vector.
    """

    def __init__(self, spans: Sequence[tuple[int, int, int]], width: int) -> None:
        super().__init__()
        self.spans = tuple(span for span in spans if span[2] > 1)
        self.width = width
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(n, d)) for _, n, d in self.spans)
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(n, d)) for _, n, d in self.spans)

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, width]``, normalised."""
        parts: list[Tensor] = []
        done = 0
        for (start, fields, dim), scale, shift in zip(
            self.spans, self.scales, self.shifts, strict=True
        ):
            if start > done:
                parts.append(x[:, done:start])
            done = start + fields * dim
            vectors = x[:, start:done].unflatten(1, (fields, dim))
            normal = nn.functional.layer_norm(vectors, (dim,))
            parts.append(torch.addcmul(shift, normal, scale).flatten(1))
        if done < self.width:
            parts.append(x[:, done:])
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


class MaskBlock(nn.Module):
    """``f(LN(W (mask * x)))``, the mask by two layers from the embeddings (section 3.3).

    Args:
        embeddings: the width of what the mask is made from.
        width: of ``x`` and the mask.
        size: of the output.
        reduction: the width of the mask's first layer, as a multiple of ``width``.
        activation: ``f``.
        dropout: of the output.
    """

    def __init__(
        self,
        embeddings: int,
        width: int,
        size: int,
        *,
        reduction: float,
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        aggregated = max(1, round(reduction * width))
        self.mask = nn.Sequential(
            nn.Linear(embeddings, aggregated), nn.ReLU(), nn.Linear(aggregated, width)
        )
        layers = [nn.Linear(width, size, bias=False), nn.LayerNorm(size), ACTIVATION[activation]()]
        self.hidden = nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []))

    def forward(self, embeddings: Tensor, x: Tensor) -> Tensor:
        """``[rows, size]`` from the embeddings and ``[rows, width]``."""
        return self.hidden(self.mask(embeddings) * x)


class MaskNetModule(nn.Module):
    """Mask blocks side by side or one after another, a deep network and a head.

    Args:
        features: the fitted features.
        config: the declaration.
    """

    def __init__(self, features: FeatureSchema, config: MaskNet) -> None:
        super().__init__()
        self.inputs = Inputs.of(features, config)
        width = self.inputs.width
        self.normal = FieldNorm(self.inputs.spans, width)
        self.parallel = config.structure == "parallel"
        blocks: list[nn.Module] = []
        before = width
        for size in config.blocks:
            blocks.append(
                MaskBlock(
                    *(width, before, size),
                    reduction=config.reduction,
                    activation=config.activation,
                    dropout=config.dropout,
                )
            )
            before = width if self.parallel else size
        self.blocks = nn.ModuleList(blocks)
        behind = sum(config.blocks) if self.parallel else config.blocks[-1]
        self.hidden = stack(
            behind,
            config.hidden,
            norm="none",
            activation=config.activation,
            dropout=config.dropout,
        )
        self.head = nn.Linear(config.hidden[-1] if config.hidden else behind, config.outputs)
        self.outputs = config.outputs

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits ``[rows]``, or ``[rows, outputs]``."""
        embeddings = self.inputs(inputs)
        x = self.normal(embeddings)
        if self.parallel:
            x = torch.cat([block(embeddings, x) for block in self.blocks], 1)
        else:
            for block in self.blocks:
                x = block(embeddings, x)
        logits = self.head(self.hidden(x))
        return logits.squeeze(1) if self.outputs == 1 else logits
