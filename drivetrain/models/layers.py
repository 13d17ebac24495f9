"""Fully connected stacks, plain and shared by the members of an ensemble."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

ACTIVATION = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over ``[rows, width]`` that takes a last batch of one row.

    One row has no variance: it is normalised by the running statistics.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalised values, of the same shape."""
        if self.training and input.shape[0] == 1:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


class MemberNorm(nn.Module):
    """Batch normalisation of ``[rows, members, width]``, each member by itself."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.norm = BatchNorm(members * width)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised values, of the same shape."""
        return self.norm(x.flatten(1)).unflatten(1, x.shape[1:])


def stack(
    width: int, hidden: Sequence[int], *, norm: str, activation: str, dropout: float
) -> nn.Sequential:
    """Linear, norm, activation and dropout for each width in ``hidden``."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), *normalisation(size, norm), ACTIVATION[activation]()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers)


def normalisation(size: int, norm: str) -> list[nn.Module]:
    """The layer of a norm, or nothing for ``none``."""
    if norm == "none":
        return []
    return [BatchNorm(size) if norm == "batch" else nn.LayerNorm(size)]


class MemberLinear(nn.Module):
    """One linear layer for all members: shared weights, adapters of rank one for each.

    Member ``k`` computes ``((x * r_k) W) * s_k + b_k`` (Wen et al., "BatchEnsemble", 2020).

    Args:
        width: of the input.
        outputs: of the output.
        members: how many share the layer.
        first: the members' input scales start as random signs, so that they differ; those of
            later layers start at one (Gorishniy et al., "TabM", 2024, section 3.3).
        adapted: whether the layer has adapters at all; without, only ``W`` and one bias.
    """

    def __init__(
        self, width: int, outputs: int, members: int, *, first: bool, adapted: bool = True
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs, bias=not adapted)
        self.scale_in: nn.Parameter | None = None
        self.scale_out: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if first or adapted:
            signs = torch.randint(0, 2, (members, width)).float() * 2 - 1
            self.scale_in = nn.Parameter(signs if first else torch.ones(members, width))
        if adapted:
            bound = 1 / math.sqrt(width)
            self.scale_out = nn.Parameter(torch.ones(members, outputs))
            self.bias = nn.Parameter(
                torch.empty(outputs).uniform_(-bound, bound).repeat(members, 1)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, members, outputs]`` from ``[rows, members or 1, width]``."""
        if self.scale_in is not None:
            x = x * self.scale_in
        x = self.linear(x)
        if self.scale_out is not None and self.bias is not None:
            x = torch.addcmul(self.bias, x, self.scale_out)
        return x


class MemberHead(nn.Module):
    """A linear layer of its own for each member."""

    def __init__(self, width: int, outputs: int, members: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(members, outputs, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, members, outputs]`` from ``[rows, members, width]``."""
        if self.weight.shape[1] == 1:  # a product and a sum: no matrix for a single column
            return (x * self.weight[:, 0]).sum(2, keepdim=True) + self.bias
        return torch.einsum("rmw,mow->rmo", x, self.weight) + self.bias


def member_stack(
    width: int,
    hidden: Sequence[int],
    members: int,
    *,
    adapters: str,
    norm: str,
    activation: str,
    dropout: float,
) -> nn.Sequential:
    """:func:`stack` for ``[rows, 1, width]``, shared by members: ``[rows, members, …]``."""
    layers: list[nn.Module] = []
    for number, size in enumerate(hidden):
        first = number == 0
        layers.append(MemberLinear(width, size, members, first=first, adapted=adapters == "all"))
        if norm != "none":
            layers.append(MemberNorm(members, size) if norm == "batch" else nn.LayerNorm(size))
        layers.append(ACTIVATION[activation]())
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers)
