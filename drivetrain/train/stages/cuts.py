"""Where a model is cut into stages: where it was asked for, or where all have as much to do."""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from drivetrain.core.errors import unknown, wrong
from drivetrain.train.stages.followed import Followed, cheap, steps

_SLACK = 1.05
"""So many times what it must have to do may the costliest stage do, if less then travels."""

Place = tuple[str, int]
"""A call of a module, at which a stage begins: its name, and how often it was called before."""


@dataclass(frozen=True)
class Weighed:
    """What a model costs on some rows.

    Attributes:
        costs: of each step its share of all multiplications and its share of the bytes of all
            weights, in the mean of the two: what a stage takes of time, and of memory.
        sizes: bytes that each step gives.
        bound: steps that give what can't be sent, such as a type.
    """

    costs: list[float]
    sizes: dict[Node, int]
    bound: set[Node]


class _Scale(Interpreter):
    """Runs a followed model and weighs each node."""

    def __init__(self, followed: Followed, travels: Callable[[Any], bool]) -> None:
        module = GraphModule(followed.owners, followed.graph)
        super().__init__(module)
        self.originals = dict(zip(module.graph.nodes, followed.graph.nodes, strict=True))
        self.counter = FlopCounterMode(display=False)
        self.travels = travels
        self.operations: dict[Node, float] = {}
        self.sizes: dict[Node, int] = {}
        self.bound: set[Node] = set()

    def run_node(self, n: Node) -> Any:
        before = self.counter.get_total_flops()
        value = super().run_node(n)
        node = self.originals[n]
        self.operations[node] = float(self.counter.get_total_flops() - before)
        self.sizes[node] = sum(t.nbytes for t in tree_leaves(value) if isinstance(t, Tensor))
        if not self.travels(value):
            self.bound.add(node)
        return value


def weigh(followed: Followed, inputs: Sequence[Tensor], travels: Callable[[Any], bool]) -> Weighed:
    """Count what a model does with ``inputs``: the same whenever it is counted.

    It runs once, in its present mode, so that buffers and generators are other ones after.

    Args:
        followed: the model.
        inputs: some rows.
        travels: whether a value can be sent.
    """
    scale = _Scale(followed, travels)
    with torch.no_grad(), scale.counter:
        scale.run(tuple(inputs))
    nodes = steps(followed)
    operations = [scale.operations[node] for node in nodes]
    seen: set[int] = set()
    weights: list[float] = []
    for tensors in used(followed):
        new = {id(tensor): tensor.nbytes for tensor in tensors if id(tensor) not in seen}
        seen.update(new)
        weights.append(float(sum(new.values())))
    shares = [[each / (sum(of) or 1.0) for each in of] for of in (operations, weights)]
    costs = [sum(both) / 2 for both in zip(*shares, strict=True)]
    return Weighed(costs, scale.sizes, scale.bound)


def used(followed: Followed) -> list[list[Tensor]]:
    """The parameters and buffers that each step needs."""
    found: list[list[Tensor]] = []
    for node in steps(followed):
        names = {str(node.target)} if node.op == "call_module" else set[str]()
        owners = [followed.owners[name] for name in sorted(names.union(_named(node)))]
        tensors: list[Tensor] = []
        for owner in owners:
            if isinstance(owner, nn.Module):
                tensors += [*owner.parameters(), *owner.buffers()]
            elif isinstance(owner, Tensor):
                tensors.append(owner)
        found.append(tensors)
    return found


def _named(node: Node) -> Iterable[str]:
    """The names of tensors that a step takes, by itself or a part of them."""
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            yield str(source.target)
        elif cheap(source):
            yield from _named(source)


def parted(followed: Followed, cut: int, kept: Mapping[int, str]) -> list[str]:
    """The tensors that steps on both sides of a cut use, of those that one stage must have."""
    needed = used(followed)
    before = {id(tensor) for tensors in needed[:cut] for tensor in tensors}
    after = {id(tensor) for tensors in needed[cut:] for tensor in tensors}
    return sorted(kept[each] for each in before & after if each in kept)


def joints(followed: Followed, kept: Mapping[int, str]) -> set[int]:
    """The steps before which a cut parts no tensor; as :func:`parted` of each is empty."""
    spans: dict[int, tuple[int, int]] = {}
    needed = used(followed)
    for at, tensors in enumerate(needed):
        for tensor in tensors:
            if id(tensor) in kept:
                spans[id(tensor)] = spans.get(id(tensor), (at, at))[0], at
    free = set(range(1, len(needed)))
    for first, last in spans.values():
        free.difference_update(range(first + 1, last + 1))
    return free


def crossing(followed: Followed, cut: int) -> list[Node]:
    """The steps before ``cut`` whose values are needed from it on, in order."""
    nodes = steps(followed)
    early = set(nodes[:cut])
    return [node for node in nodes[:cut] if any(user not in early for user in node.users)]


def places(followed: Followed) -> dict[Place, int]:
    """The steps that call a module, by the call."""
    times: dict[str, int] = {}
    found: dict[Place, int] = {}
    for at, node in enumerate(steps(followed)):
        if node.op == "call_module":
            name = str(node.target)
            found[name, times.get(name, 0)] = at
            times[name] = times.get(name, 0) + 1
    return found


def named(followed: Followed, cut: Sequence[str], where: str) -> list[Place]:
    """The calls at which the modules called ``cut`` begin.

    Args:
        followed: the model.
        cut: names of modules; of one that was looked into, its first module is meant.
        where: names the option.

    Raises:
        ValueError: there is no such module, or nobody can look into the one that it is in; they
            are not in the order in which the model comes to them.
    """
    nodes, calls = steps(followed), places(followed)
    begins: dict[str, Place] = {}
    for place, at in calls.items():
        for name in (*followed.within[nodes[at]], place[0]):
            begins.setdefault(name, place)
    for name in ("", "module"):  # the whole model
        begins.pop(name, None)
    # A model that is bound to its features is called "module" in there, which nobody wrote.
    short = {name.removeprefix("module."): place for name, place in begins.items()}
    found: list[Place] = []
    for name in cut:
        if name not in begins and name not in short:
            for outer, why in followed.opaque.items():
                if _in(name, outer):
                    allowed = f"a module that is not in it, whose forward can't be followed: {why}"
                    raise wrong(f"{where}, a module in {_said(outer)}", name, allowed)
            raise unknown("module", name, sorted(short, key=lambda n: calls[short[n]]), where)
        found.append(begins.get(name) or short[name])
    if sorted(found, key=calls.__getitem__) != found or len(set(found)) != len(found):
        order = sorted(cut, key=lambda n: calls[begins.get(n) or short[n]])
        raise wrong(where, tuple(cut), f"each once, in the model's order: {tuple(order)}")
    return found


def _in(name: str, outer: str) -> bool:
    """Whether a module is in another, whose name may have a ``module.`` before."""
    if outer in ("", "module"):
        return True
    return any(name.startswith(f"{each}.") for each in (outer, outer.removeprefix("module.")))


def _said(name: str) -> str:
    """A module's name as its author knows it."""
    return "the model" if name in ("", "module") else repr(name.removeprefix("module."))


def balanced(
    followed: Followed,
    weighed: Weighed,
    stages: int,
    joint: Iterable[int],
    trained: Callable[[Tensor], bool],
) -> list[int]:
    """The cuts that leave the costliest stage the least to do.

    Of those within :data:`_SLACK` of that, the ones over which the fewest bytes travel.

    Args:
        followed: the model.
        weighed: what its steps cost.
        stages: how many; each has a weight to train.
        joint: before which steps a cut may be.
        trained: whether a tensor is a weight to train.

    Raises:
        ValueError: the model has fewer parts than there shall be stages.
    """
    ends = [0, *sorted(joint), len(weighed.costs)]
    total, weights = [0.0], [0]
    for cost, tensors in zip(weighed.costs, used(followed), strict=True):
        total.append(total[-1] + cost)
        weights.append(weights[-1] + sum(map(trained, tensors)))
    travel = [sum(weighed.sizes[node] for node in crossing(followed, end)) for end in ends]

    def work(begin: int, end: int) -> float:
        if weights[ends[end]] == weights[ends[begin]]:
            return math.inf
        return total[ends[end]] - total[ends[begin]]

    least, _ = _chosen(len(ends), stages, work, max)
    if least == math.inf:
        parts = sum(b > a for a, b in pairwise(weights))
        found = f"{min(parts, len(ends) - 1)} modules in a row"
        why = "".join(
            f"; {_said(name)} is one, for {text}" for name, text in followed.opaque.items()
        )
        allowed = f"at least {stages}, one with weights for each stage{why}"
        raise wrong("Pipelined: the parts of the model", found, allowed)

    def sent(begin: int, end: int) -> float:
        return travel[end] if work(begin, end) <= _SLACK * least else math.inf

    _, cuts = _chosen(len(ends), stages, sent, operator.add)
    return [ends[end] for end in cuts[:-1]]


def _chosen(
    count: int,
    stages: int,
    cost: Callable[[int, int], float],
    join: Callable[[float, float], float],
) -> tuple[float, tuple[int, ...]]:
    """The cheapest way from 0 to ``count - 1`` in so many steps forward, and where each ends."""
    reached: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for _ in range(stages):
        ahead: dict[int, tuple[float, tuple[int, ...]]] = {}
        for begin, (so_far, cuts) in reached.items():
            for end in range(begin + 1, count):
                found = join(so_far, cost(begin, end)), (*cuts, end)
                ahead[end] = min(found, ahead.get(end, found))
        reached = ahead
    return reached.get(count - 1, (math.inf, ()))
