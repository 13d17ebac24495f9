"""The sum of rows' gradients, each cut to a norm: by layers, by torch.func, and row by row."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, grad_and_value, vmap

from drivetrain.train.privacy import ghost

Loss = Callable[[Any, Mapping[str, Tensor]], Tensor]

_BELOW = 1 - 2**-14
"""Norms are rounded: cut a little below the bound, so that no row exceeds it."""


class Clipped(Protocol):
    """Adds the sum of rows' gradients, each cut to a norm, to ``grad`` of the parameters."""

    def __call__(
        self, inputs: Sequence[Tensor], targets: Mapping[str, Tensor], clip_norm: float
    ) -> tuple[Tensor, int]:
        """Add the gradients of some rows; the sum of their losses, and how many were left out.

        A row whose gradient is not finite can't be cut, and so has no part in either sum.
        """
        ...


def factors(norms: Tensor, clip_norm: float) -> Tensor:
    """What rows' gradients are multiplied with, so that none is longer than ``clip_norm``."""
    return (clip_norm * _BELOW / norms).clamp(max=1.0)  # a norm of 0 gives infinity, and so 1


class ByRow:
    """A backward pass for each row: slow, for any model, and what the others are held against.

    Args:
        model: called with input tensors, rows first.
        loss: of outputs and targets; of one row.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self._model = model
        self._loss = loss
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def __call__(
        self, inputs: Sequence[Tensor], targets: Mapping[str, Tensor], clip_norm: float
    ) -> tuple[Tensor, int]:
        total, left_out = torch.zeros((), device=inputs[0].device), 0
        for row in range(len(inputs[0])):
            one = slice(row, row + 1)
            outputs = self._model(*(tensor[one] for tensor in inputs))
            loss = self._loss(outputs, {name: tensor[one] for name, tensor in targets.items()})
            found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            pairs = [(p, g) for p, g in zip(self._parameters, found, strict=True) if g is not None]
            norm = torch.stack([g.norm() for _, g in pairs]).norm()
            if not bool(norm.isfinite()):
                left_out += 1
                continue
            total = total + loss.detach()
            factor = factors(norm, clip_norm)
            for parameter, gradient in pairs:
                add(parameter, gradient * factor)
        return total, left_out


class ByVmap:
    """Gradients of all rows at once through ``torch.func.vmap``.

    Args: as of :class:`ByRow`.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        held = {n: p for n, p in model.named_parameters() if not p.requires_grad}

        def of_row(
            weights: Mapping[str, Tensor], inputs: Sequence[Tensor], targets: Mapping[str, Tensor]
        ) -> Tensor:
            rest = {**held, **dict(model.named_buffers())}
            one = tuple(tensor.unsqueeze(0) for tensor in inputs)
            outputs = functional_call(model, {**weights, **rest}, one)
            return loss(outputs, {name: t.unsqueeze(0) for name, t in targets.items()})

        self._each = vmap(grad_and_value(of_row), in_dims=(None, 0, 0), randomness="different")

    def __call__(
        self, inputs: Sequence[Tensor], targets: Mapping[str, Tensor], clip_norm: float
    ) -> tuple[Tensor, int]:
        weights = {name: parameter.detach() for name, parameter in self._parameters.items()}
        gradients, losses = self._each(weights, tuple(inputs), dict(targets))
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
        kept = norms.isfinite()
        left_out = int((~kept).sum())
        if left_out:
            gradients = {name: gradient[kept] for name, gradient in gradients.items()}
            norms, losses = norms[kept], losses[kept]
        factor = factors(norms, clip_norm)
        for name, gradient in gradients.items():
            parameter = self._parameters[name]
            add(parameter, (factor @ gradient.flatten(1)).view_as(parameter))
        return losses.sum(), left_out


class ByLayer:
    """Norms and the cut sum from what layers take and what comes back to them: one backward pass.

    A row's outputs and loss must depend on that row alone, and the loss of a batch must be the
    mean over its rows.

    Args: as of :class:`ByRow`.

    Raises:
        ValueError: there is no rule for some layer; see :func:`unruled`.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        if found := unruled(model):
            raise ValueError(f"there is no rule for {', '.join(found)}")
        self._model = model
        self._loss = loss
        self._layers = [m for m in model.modules() if type(m) in ghost.RULES]

    def __call__(
        self, inputs: Sequence[Tensor], targets: Mapping[str, Tensor], clip_norm: float
    ) -> tuple[Tensor, int]:
        loss, parts = self._parts(inputs, targets)
        with torch.no_grad():
            norms = torch.stack([part.squares for part in parts]).sum(0).sqrt()
            kept = norms.isfinite()
            left_out = int((~kept).sum())
            if not left_out:
                factor = factors(norms, clip_norm)
                for part in parts:
                    add(part.parameter, part.summed(factor))
                return loss, 0
        if left_out == len(norms):
            return torch.zeros_like(loss), left_out
        rest = [tensor[kept] for tensor in inputs]
        loss, more = self(rest, {name: t[kept] for name, t in targets.items()}, clip_norm)
        return loss, left_out + more

    def _parts(
        self, inputs: Sequence[Tensor], targets: Mapping[str, Tensor]
    ) -> tuple[Tensor, list[ghost.Part]]:
        """The sum of rows' losses, and each parameter's share of their gradients."""
        rows = len(inputs[0])
        took: list[tuple[nn.Module, Tensor, GradientEdge]] = []

        def note(module: nn.Module, taken: tuple[Any, ...], given: Any) -> None:
            if given.requires_grad:
                x = taken[0] if isinstance(taken[0], Tensor) else given
                # An edge stays what it is where an activation then works in place.
                took.append((module, x.detach(), get_gradient_edge(given)))

        hooks = [layer.register_forward_hook(note) for layer in self._layers]
        try:
            loss = self._loss(self._model(*inputs), targets) * rows
        finally:
            for hook in hooks:
                hook.remove()
        edges = [edge for *_, edge in took]
        back = torch.autograd.grad(loss, edges, allow_unused=True)
        calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        for (layer, x, _), gradient in zip(took, back, strict=True):
            if gradient is not None:
                if not len(x) == len(gradient) == rows:
                    raise ValueError(f"{type(layer).__name__} takes {len(x)} rows for {rows}")
                calls.setdefault(layer, []).append((x, gradient))
        with torch.no_grad():
            parts = [part for layer, held in calls.items() for part in ghost.parts(layer, held)]
        return loss.detach(), parts


def unruled(model: nn.Module) -> list[str]:
    """The modules whose gradients :class:`ByLayer` can't find, by name and class.

    These are modules with parameters of their own and no rule, and those that share a parameter
    with another module: its gradients would have to be added up before their norm is taken.
    """
    owner: dict[int, str] = {}
    found: list[str] = []
    for name, module in model.named_modules():
        ruled = ghost.known(module)
        for parameter in module.parameters(recurse=False):
            ruled = ruled and owner.setdefault(id(parameter), name) == name
        if not ruled:
            found.append(f"{name or 'the model'} ({type(module).__name__})")
    return found


def mixing(model: nn.Module) -> list[str]:
    """The modules that compute a row from others, so that no gradient is one row's alone."""
    kinds = nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm
    return [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, kinds[0])
        or (isinstance(module, kinds[1]) and module.track_running_stats)
    ]


def add(parameter: Tensor, gradient: Tensor) -> None:
    """Add to a parameter's gradient."""
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad += gradient
