"""Structured pruning: whole channels go out of a trained module, which is then fine-tuned."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from drivetrain.core.errors import wrong
from drivetrain.core.metric import Emit, Emitted, Metric
from drivetrain.core.need import need
from drivetrain.core.schema import Schema

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Takes the weakest output channels out of each linear and convolutional layer.

    What a channel touches goes with it: its norm, the inputs of the layers after it, whatever is
    added to it (Fang et al., "DepGraph: Towards Any Structural Pruning", 2023, by torch-pruning).
    A channel's strength is the norm of all these weights. No masks are left: the layers are
    smaller, so any runtime is faster. Layers that the outputs come from, and features and
    embeddings, stay as wide as they are.

    An option of the strategy and no ``Pass``: a pass gets a graph, and pruned weights must be
    trained again, on the same rows, in the same processes.

    Attributes:
        channels: the share of each layer's channels that goes; at least one stays.
        epochs: of fine-tuning; the schedule begins anew.
        lr: the learning rate of fine-tuning; None takes the training's.
        keep: patterns of names of layers that stay as wide as they are, such as
            ``"*towers.0*"``.
    """

    channels: float = 0.5
    epochs: int = 1
    lr: float | None = None
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.channels < 1:
            raise wrong("Prune.channels", self.channels, "a share above 0 and below 1")
        if not isinstance(self.epochs, int) or self.epochs < 1:
            raise wrong("Prune.epochs", self.epochs, "an integer of at least 1")
        if self.lr is not None and not self.lr > 0:
            raise wrong("Prune.lr", self.lr, "a number above 0, or None")
        if not isinstance(self.keep, tuple):
            raise wrong("Prune.keep", self.keep, "a tuple of patterns")

    def __call__(self, model: "nn.Module", inputs: Schema, emit: Emit) -> "nn.Module":
        """A smaller copy of the model, which is left as it is; equal weights give equal copies.

        Args:
            model: takes one tensor for each of ``inputs``, in order.
            inputs: ``features.tensors``.
            emit: hears how many parameters there were and are.

        Raises:
            ValueError: no layer can be pruned, or the model does not run without its channels.
        """
        import copy

        smaller = copy.deepcopy(model).eval()
        sample = _sample(smaller, inputs)
        shapes = _shapes(smaller, sample)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # parameters outside of layers, which stay
                pruned = self._prune(smaller, sample)
            after = _shapes(smaller, sample)
        except (RuntimeError, IndexError, AttributeError) as error:
            raise ValueError(
                f"Prune: the model does not run without its channels: {error}; name the layers "
                "that must stay as they are in keep."
            ) from error
        if not pruned:
            raise wrong("Prune: layers that can be pruned", "none", "a hidden layer, not in keep")
        if after != shapes:
            raise wrong("Prune: outputs", after, f"{shapes}; name their layers in keep")
        for when, each in (("before", model), ("after", smaller)):
            count = sum(parameter.numel() for parameter in each.parameters())
            emit(Metric(name=f"prune/parameters_{when}", value=float(count)))
        return smaller

    def _prune(self, model: "nn.Module", sample: "Sequence[Tensor]") -> int:
        """Prune in place; how many groups of layers that share channels were made smaller."""
        import torch

        pruning: Any = need("torch_pruning", "prune")
        kept = [
            *_ends(model, sample),
            *(m for m in model.modules() if isinstance(m, torch.nn.Embedding)),
            *(m for n, m in model.named_modules() if any(fnmatchcase(n, p) for p in self.keep)),
        ]
        graph = pruning.DependencyGraph().build_dependency(model, list(sample))
        importance = pruning.importance.MagnitudeImportance(p=2)
        layers = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
        pruned = 0
        # One by one: what is pruned moves the columns of what is joined with it.
        for group in graph.get_all_groups(ignored_layers=kept, root_module_types=layers):
            first, channels = group[0]
            if getattr(first.target.module, "groups", 1) > 1 or len(channels) < 2:
                continue  # channels of a grouped convolution go together or not at all
            order = importance(group).argsort(stable=True).tolist()
            chosen = sorted(order[: min(round(len(order) * self.channels), len(order) - 1)])
            part = graph.get_pruning_group(first.target.module, first.handler, chosen)
            if chosen and graph.check_pruning_group(part):
                part.prune()
                pruned += 1
        return pruned


def _sample(model: "nn.Module", inputs: Schema) -> "list[Tensor]":
    """Two rows of zeros: only their way through the model is looked at."""
    import torch

    device = next(model.parameters()).device
    return [
        torch.zeros((2, *(n or 1 for n in f.shape)), dtype=getattr(torch, f.dtype), device=device)
        for f in inputs
    ]


def _shapes(model: "nn.Module", sample: "Sequence[Tensor]") -> dict[str, tuple[int, ...]]:
    import torch

    from drivetrain.train.predictions import named

    with torch.no_grad():
        return {name: tuple(tensor.shape) for name, tensor in named(model(*sample)).items()}


def _ends(model: "nn.Module", sample: "Sequence[Tensor]") -> "set[nn.Module]":
    """The layers whose channels the outputs are made of, with no other layer in between.

    Followed backwards from the outputs, through what gradients go through.
    """
    import torch

    from drivetrain.train.predictions import named

    with _recorded(model) as made:
        outputs = named(model(*sample)).values()
    ends: set[torch.nn.Module] = set()
    seen: set[Any] = set()
    todo: list[Any] = [output.grad_fn for output in outputs]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made:
            ends.add(made[node])
        else:
            todo.extend(before for before, _ in node.next_functions)
    return ends


@contextmanager
def _recorded(model: "nn.Module") -> "Iterator[dict[Any, nn.Module]]":
    """Which layer made a tensor, by the node of the tensor's gradient."""
    from torch import nn

    made: dict[Any, nn.Module] = {}

    def record(layer: nn.Module, _: Any, output: Any) -> None:
        made[output.grad_fn] = layer

    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hooks = [m.register_forward_hook(record) for m in model.modules() if isinstance(m, layers)]
    try:
        yield made
    finally:
        for hook in hooks:
            hook.remove()


def under(name: str, emit: Emit) -> Emit:
    """Passes everything on, metrics under a name of their own: their steps begin anew."""

    def passed(item: Emitted) -> None:
        if isinstance(item, Metric):
            item = replace(item, name=f"{name}/{item.name}")
        emit(item)

    return passed
