"""What each layer says of rows' gradients: their norms, and their weighted sum, mostly unmade.

A layer's gradient for one row is a product of what the layer took and of what comes back to it.
So its norm and any weighted sum over rows follow from these two, and a gradient for each row is
made only where it is smaller than they are.

Sources: Goodfellow, Efficient Per-Example Gradient Computations, 2015; Li et al., Large Language
Models Can Be Strong Differentially Private Learners, ICLR 2022; Bu et al., Differentially Private
Optimization on Large Model at Small Cost, ICML 2023.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, layer_norm, unfold

from drivetrain.models.embedding import Linear as GeneralisedLinear

Calls = Sequence[tuple[Tensor, Tensor]]
"""What a layer took and the gradient of what it answered, rows first, for each time it ran."""


@dataclass(frozen=True)
class Part:
    """One parameter's share.

    Attributes:
        parameter: whose.
        squares: the squared norm of each row's gradient, ``[rows]``.
        summed: the sum of rows' gradients, each times its factor: ``[rows]`` to the parameter's
            shape.
    """

    parameter: Tensor
    squares: Tensor
    summed: Callable[[Tensor], Tensor]


def parts(module: nn.Module, calls: Calls) -> Iterator[Part]:
    """The shares of a layer's own parameters that want a gradient."""
    for part in RULES[type(module)](module, calls):
        if part.parameter.requires_grad:
            yield part


def known(module: nn.Module) -> bool:
    """Whether a module has no parameters of its own, or there is a rule for it."""
    if next(module.parameters(recurse=False), None) is None:
        return True
    if type(module) not in RULES:
        return False
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return plain and module.groups == 1
    if isinstance(module, nn.Embedding):
        return module.max_norm is None and not (module.sparse or module.scale_grad_by_freq)
    return True


def _made(parameter: Tensor, gradients: Tensor) -> Part:
    """The share of a parameter whose gradients were made, ``[rows, …]``."""
    flat = gradients.flatten(1)
    return Part(
        parameter,
        flat.square().sum(1),
        lambda factors: (factors @ flat).view_as(parameter),
    )


def _product(parameter: Tensor, taken: Tensor, back: Tensor) -> Part:
    """The share of a matrix: ``[rows, places, in]`` was taken, ``[rows, places, out]`` came back.

    Over places the gradient is a sum of outer products. Its norm needs either the products of all
    pairs of places, or the matrix itself: whichever is smaller.
    """
    _, places, width = taken.shape
    out = back.shape[2]

    def summed(factors: Tensor) -> Tensor:
        weighted = (back * factors.view(-1, 1, 1)).reshape(-1, out)
        return (weighted.T @ taken.reshape(-1, width)).view_as(parameter)

    if places == 1:
        squares = taken.square().sum((1, 2)) * back.square().sum((1, 2))
    elif 2 * places * places <= width * out:
        pairs = torch.bmm(taken, taken.transpose(1, 2)) * torch.bmm(back, back.transpose(1, 2))
        squares = pairs.sum((1, 2)).clamp(min=0)  # rounding may leave less than nothing
    else:
        return _made(parameter, torch.bmm(back.transpose(1, 2), taken))
    return Part(parameter, squares, summed)


def _places(tensor: Tensor) -> Tensor:
    """``[rows, …, width]`` as ``[rows, places, width]``."""
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])


def _linear(module: nn.Linear, calls: Calls) -> Iterator[Part]:
    taken = torch.cat([_places(x) for x, _ in calls], 1)
    back = torch.cat([_places(g) for _, g in calls], 1)
    yield _product(module.weight, taken, back)
    if module.bias is not None:
        yield _made(module.bias, back.sum(1))


def _embedding(module: nn.Embedding, calls: Calls) -> Iterator[Part]:
    ids = torch.cat([x.reshape(len(x), -1) for x, _ in calls], 1)
    back = torch.cat([_places(g) for _, g in calls], 1)
    if module.padding_idx is not None:
        back = back * (ids != module.padding_idx).unsqueeze(2)
    same = ids.unsqueeze(2) == ids.unsqueeze(1)  # two places of one value add up
    squares = (torch.bmm(back, back.transpose(1, 2)) * same).sum((1, 2)).clamp(min=0)

    def summed(factors: Tensor) -> Tensor:
        weighted = (back * factors.view(-1, 1, 1)).reshape(-1, back.shape[2])
        return torch.zeros_like(module.weight).index_add_(0, ids.reshape(-1), weighted)

    yield Part(module.weight, squares, summed)


def _convolution(module: nn.Conv1d | nn.Conv2d, calls: Calls) -> Iterator[Part]:
    taken = torch.cat([_patches(module, x) for x, _ in calls], 2)
    back = torch.cat([g.flatten(2) for _, g in calls], 2)
    yield _product(module.weight, taken.transpose(1, 2), back.transpose(1, 2))
    if module.bias is not None:
        yield _made(module.bias, back.sum(2))


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """What the kernel sees at each place, ``[rows, in · kernel, places]``."""
    options: dict[str, Any] = {
        name: tuple(getattr(module, name)) for name in ("dilation", "padding", "stride")
    }
    kernel: tuple[int, ...] = tuple(module.kernel_size)
    if isinstance(module, nn.Conv1d):
        x = x.unsqueeze(2)
        kernel = (1, *kernel)
        beside = {"dilation": 1, "padding": 0, "stride": 1}
        options = {name: (beside[name], *values) for name, values in options.items()}
    return unfold(x, kernel, **options)


def _layer_norm(module: nn.LayerNorm, calls: Calls) -> Iterator[Part]:
    shape = tuple(module.normalized_shape)

    def over_places(values: Tensor) -> Tensor:
        return values.reshape(len(values), -1, *shape).sum(1)

    if module.weight is not None:
        normal = [(layer_norm(x, shape, eps=module.eps), g) for x, g in calls]
        yield _made(module.weight, _total(over_places(x * g) for x, g in normal))
    if module.bias is not None:
        yield _made(module.bias, _total(over_places(g) for _, g in calls))


def _group_norm(module: nn.GroupNorm, calls: Calls) -> Iterator[Part]:
    if module.affine:
        normal = [(group_norm(x, module.num_groups, eps=module.eps), g) for x, g in calls]
        yield _made(module.weight, _total((x * g).flatten(2).sum(2) for x, g in normal))
        yield _made(module.bias, _total(g.flatten(2).sum(2) for _, g in calls))


def _generalised(module: GeneralisedLinear, calls: Calls) -> Iterator[Part]:
    # Its weights are other layers'; its own is the bias, which is added to what it answers.
    yield _made(module.bias, _total(g for _, g in calls))


def _total(tensors: Iterator[Tensor]) -> Tensor:
    first, *others = tensors
    return sum(others, first)


Rule = Callable[[Any, Calls], Iterator[Part]]
RULES: Mapping[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    GeneralisedLinear: _generalised,
}
