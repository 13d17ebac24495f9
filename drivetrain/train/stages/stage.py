"""One of the stages that a model was cut into, and how the whole comes of them again."""

import copy
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from drivetrain.train.loop.optimizer import groups_by_decay
from drivetrain.train.stages.cuts import crossing, used
from drivetrain.train.stages.followed import Followed, steps
from drivetrain.train.together.group import Group, naming


@dataclass(frozen=True)
class Whole:
    """What a checkpoint must know of a model of which a process holds a stage.

    Attributes:
        shapes: names and shapes of all weights and lasting buffers.
        optimized: names of its parameters in the order in which an optimizer counts them.
        trained: names of its parameters that want a gradient, in order.
    """

    shapes: list[tuple[str, list[int]]]
    optimized: list[str]
    trained: list[str]

    @classmethod
    def of(cls, model: nn.Module, weight_decay: float, embedding_decay: float) -> "Whole":
        """That of ``model``, for an optimizer with these decays."""
        names = {id(p): name for name, p in model.named_parameters()}
        groups = groups_by_decay(model, weight_decay, embedding_decay)
        return cls(
            [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()],
            [names[id(p)] for group in groups for p in group["params"]],
            [name for name, p in model.named_parameters() if p.requires_grad],
        )


def program(followed: Followed, cuts: Sequence[int], index: int) -> GraphModule:
    """What one stage does: called with what the stage before gives, and the model's inputs.

    All but the last give a tuple of what stages after them need; the last what the model gives.

    Args:
        followed: the model.
        cuts: the steps before which it is cut.
        index: of the stage.
    """
    nodes = steps(followed)
    begin, end = [0, *cuts][index], [*cuts, len(nodes)][index]
    graph = Graph()
    received, inputs = graph.placeholder("received"), graph.placeholder("inputs")
    copies: dict[Node, Node] = {}
    for node in followed.graph.find_nodes(op="placeholder"):
        copies[node] = inputs
    for number, node in enumerate(crossing(followed, begin)):
        copies[node] = graph.call_function(operator.getitem, (received, number))

    def copied(node: Node) -> Node:
        if node not in copies:  # names and parts of inputs are as much this stage's as another's
            copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in nodes[begin:end]:
        copies[node] = graph.node_copy(node, copied)
    if end < len(nodes):
        graph.output(tuple(copied(node) for node in crossing(followed, end)))
    else:
        (output,) = followed.graph.find_nodes(op="output")
        graph.output(map_arg(output.args[0], copied))
    return GraphModule(followed.owners, graph)


class Stage(nn.Module):
    """Some of a model's modules, under the names that they have there.

    Args:
        model: all of it.
        training: what the stage does in training, of :func:`program`.
        serving: what it does else.
        index: which stage it is, from 0.
        count: how many there are.
        tensors: the parameters and lasting buffers that are this stage's, by ``id``.
        whole: what to know of all of it.

    Attributes:
        first: whether it takes the model's inputs alone.
        last: whether it gives the model's outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        training: GraphModule,
        serving: GraphModule,
        index: int,
        count: int,
        tensors: set[int],
        whole: Whole,
    ) -> None:
        super().__init__()
        self.index, self.count, self.whole = index, count, whole
        self.first, self.last = index == 0, index == count - 1
        # In a dictionary, where they are no modules of this one: they name what it has already.
        self._programs = {True: training, False: serving}
        called = {
            node.target
            for each in (training, serving)
            for node in each.graph.find_nodes(op="call_module")
        }
        kept = _kept(model, "", called, tensors)
        if kept is not None:
            self._parameters, self._buffers = kept._parameters, kept._buffers
            self._non_persistent_buffers_set = kept._non_persistent_buffers_set
            self._modules = kept._modules

    def forward(self, received: Any, inputs: Any) -> Any:
        """What the next stage needs, or the model's outputs.

        Args:
            received: what the stage before gave; anything in the first.
            inputs: the model's.
        """
        return self._programs[self.training](received, tuple(inputs))


def _kept(module: nn.Module, name: str, called: set[Any], tensors: set[int]) -> nn.Module | None:
    """A copy of ``module`` without what another stage has; None if all is another's.

    It is of the same class, which says how its weights decay. Modules that are called are no
    copies, so that they hear of ``train`` and ``eval``.
    """
    if name in called:
        return module
    under = f"{name}." if name else ""
    found = copy.copy(module)
    found._parameters = {n: p for n, p in module._parameters.items() if id(p) in tensors}
    found._buffers = {
        n: b
        for n, b in module._buffers.items()
        if id(b) in tensors or n in module._non_persistent_buffers_set
    }
    children = {
        n: _kept(child, under + n, called, tensors)
        for n, child in module._modules.items()
        if child is not None
    }
    found._modules = {n: child for n, child in children.items() if child is not None}
    lasting = set(found._buffers) - module._non_persistent_buffers_set
    return found if found._parameters or found._modules or lasting else None


def lasting(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's parameters and lasting buffers themselves, each once, by their first name."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def owners(model: nn.Module, modes: Iterable[tuple[Followed, Sequence[int]]]) -> dict[int, int]:
    """The stage of each lasting tensor, by ``id``; the first has what no step uses.

    Args:
        model: all of it.
        modes: the model as followed, and its cuts, in training and else.
    """
    found = {id(tensor): 0 for _, tensor in lasting(model)}
    for followed, cuts in modes:
        for at, tensors in enumerate(used(followed)):
            stage = sum(at >= cut for cut in cuts)
            found.update({id(tensor): stage for tensor in tensors if id(tensor) in found})
    return found


@torch.no_grad()
def let_go(model: nn.Module, stage: Stage) -> None:
    """Free the memory of the weights that other stages have."""
    mine = {id(tensor) for _, tensor in lasting(stage)}
    for _, tensor in lasting(model):
        if id(tensor) not in mine:
            tensor.data = tensor.new_empty(0)


@torch.no_grad()
def put_back(model: nn.Module, whole: Whole, stages: dict[int, int], group: Group) -> None:
    """Give ``model`` the weights of all its stages, in every process.

    Args:
        model: whose other weights were let go.
        whole: their shapes.
        stages: the stage of each, of :func:`owners`.
        group: of all processes, the first of which hold the stages in order.
    """
    shapes = dict(whole.shapes)
    with naming(group):
        for name, tensor in lasting(model):
            if list(tensor.shape) != shapes[name]:
                tensor.data = tensor.new_empty(shapes[name])
            # Of counting buffers too, which differ between copies by who had rows.
            held = tensor.data.contiguous()
            dist.broadcast(held, src=stages[id(tensor)])
            tensor.data = held
            group.traffic.broadcast(held)
