"""Fused torch optimizers by name, with weight decay only where it belongs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from drivetrain.core.errors import unknown
from drivetrain.models.layers import MemberLinear
from drivetrain.train.checkpoints.pieces import alike, shared
from drivetrain.train.loop import fused, uncompiled

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": fused.AdamW,
    "adam": fused.Adam,
    "sgd": uncompiled.SGD,
    "adagrad": uncompiled.Adagrad,
}
FUSED: Mapping[str, tuple[str, ...]] = {
    "adamw": ("cpu", "cuda"),
    "adam": ("cpu", "cuda"),
    "sgd": ("cpu", "cuda"),
    "adagrad": ("cpu",),
}
"""Where each optimizer has one kernel for all of its arithmetic."""
FUSED_PIECES = ("adamw", "adam")
"""Those whose kernel takes tensors that lie in pieces (torch 2.13)."""


def make(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    weight_decay: float = 0.0,
    embedding_decay: float = 0.0,
    momentum: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """The optimizer called ``name`` over the parameters of ``model`` that want a gradient.

    Args:
        model: on its device already.
        name: ``adamw``, ``adam``, ``sgd`` or ``adagrad``.
        lr: the learning rate.
        weight_decay: of weights; biases, norms and adapters have none.
        embedding_decay: of embedding tables.
        momentum: of ``sgd``.
        betas: of ``adam`` and ``adamw``.

    Raises:
        ValueError: no such optimizer, or the model has nothing to train.
    """
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    groups = groups_by_decay(model, weight_decay, embedding_decay)
    if not groups:
        raise ValueError("the model has no parameter that wants a gradient: nothing to train.")
    options: dict[str, Any] = {"lr": lr}
    if name in ("adam", "adamw"):
        options["betas"] = betas
    if name == "sgd":
        options["momentum"] = momentum
    device = groups[0]["params"][0].device.type
    whole = not any(shared(p) for group in groups for p in group["params"])
    able = device in FUSED[name] and (whole or name in FUSED_PIECES)
    kernel = "fused" if able else "foreach"
    return OPTIMIZERS[name](groups, **options, **{kernel: True})


def groups_by_decay(
    model: nn.Module, weight_decay: float, embedding_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups, one for each different weight decay; one kernel takes what lies alike."""
    embeddings: set[int] = set()
    adapters: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            embeddings.update(id(p) for p in module.parameters(recurse=False))
        elif isinstance(module, MemberLinear):
            adapters.update(id(p) for p in module.parameters(recurse=False))
    groups: dict[tuple[float, int], list[nn.Parameter]] = {}
    learned = [p for p in model.parameters() if p.requires_grad]
    layouts = {at: layout for layout, places in enumerate(alike(learned)) for at in places}
    for at, parameter in enumerate(learned):
        if id(parameter) in embeddings:
            decay = embedding_decay
        elif parameter.dim() < 2 or id(parameter) in adapters:
            decay = 0.0
        else:
            decay = weight_decay
        groups.setdefault((decay, layouts[at]), []).append(parameter)
    return [{"params": group, "weight_decay": decay} for (decay, _), group in groups.items()]
