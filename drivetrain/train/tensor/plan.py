"""Which layers of a model are cut over processes, found from how numbers flow between them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from drivetrain.core.errors import unknown, wrong

CUTS = ("column", "row", "gathered")
SAMPLE = 4
"""Rows on which a plan is made and tried."""


@dataclass(frozen=True)
class Pair:
    """Layers that need one message: what the first ones give in parts, the last one takes so.

    Attributes:
        columns: cut by outputs, in the order of their calls.
        row: cut by inputs.
        draws: random numbers are drawn between them by something else than ``nn.Dropout``.
    """

    columns: tuple[str, ...]
    row: str
    draws: bool = False


@dataclass(frozen=True)
class Plan:
    """How a model is cut.

    Attributes:
        styles: of each layer that is, by name, as ``TensorParallel.plan`` has them.
        pairs: those that were found.
    """

    styles: Mapping[str, Any]
    pairs: Sequence[Pair]


def planned(
    model: nn.Module,
    sample: Sequence[Tensor],
    ways: int,
    at_least: int,
    declared: Mapping[str, Any],
) -> Plan:
    """How to cut a model into ``ways`` parts.

    A linear layer whose inputs come from others by steps that treat each part of them by itself
    (an activation, a gate, the heads of an attention) makes a pair with these: the first are cut
    by outputs, it by inputs, and one sum of messages does for all. Whether steps do so is tried:
    each part of the outputs must lead to that part of the inputs. What is in no pair is cut by
    outputs, which are put together; tables of embeddings are, or by rows where their vectors
    can't be cut evenly. What has another part in it that learns, is used elsewhere too, or is
    small, stays whole.

    Args:
        model: in evaluation mode; left as it is.
        sample: a few rows of its inputs.
        ways: how many parts.
        at_least: parameters of a layer (or a pair) that is worth cutting.
        declared: styles by patterns of names, which win; the first that fits.

    Raises:
        ValueError: a pattern that fits no layer, or a style that a layer can't have.
    """
    told = _declared(model, declared, ways)
    single = _unshared(model)
    free = {n: m for n, m in single.items() if n not in told}
    linears = {n: m for n, m in free.items() if type(m) is nn.Linear}
    with _recorded(model, linears) as calls, torch.enable_grad():
        outputs = model(*sample)
    pairs = _candidates(calls, linears, outputs, ways, at_least)
    pairs = _held(model, sample, ways, linears, calls, pairs)
    pairs = _drawing(model, sample, linears, pairs)
    styles: dict[str, Any] = {}
    for pair in pairs:
        styles |= dict.fromkeys(pair.columns, "column") | {pair.row: "row"}
    for name, module in free.items():
        if name in styles or sum(p.numel() for p in module.parameters()) < at_least:
            continue
        if type(module) is nn.Linear and module.out_features % ways == 0:
            styles[name] = "gathered"
        elif type(module) is nn.Embedding and not _peculiar(module):
            if module.embedding_dim % ways == 0:
                styles[name] = "gathered"
            elif _rows_for_all(module, ways):
                styles[name] = "row"
    return Plan({**styles, **{n: s for n, s in told.items() if s != "whole"}}, pairs)


def _declared(model: nn.Module, declared: Mapping[str, Any], ways: int) -> dict[str, Any]:
    """The style of each layer that a pattern fits, ``whole`` ones included."""
    modules, single = dict(model.named_modules()), _unshared(model)
    found: dict[str, Any] = {}
    for pattern, style in declared.items():
        where = f"TensorParallel.plan: {pattern!r}"
        fitting = [name for name in modules if fnmatchcase(name, pattern)]
        if not fitting:
            raise unknown("pattern", pattern, modules, "TensorParallel.plan")
        if isinstance(style, str) and style != "whole":
            kinds = ", ".join(sorted({type(modules[name]).__name__ for name in fitting}))
            fitting = [n for n in fitting if isinstance(modules[n], nn.Linear | nn.Embedding)]
            if not fitting:
                raise wrong(where, kinds, "linear layers and tables of embeddings")
        for name in fitting:
            found.setdefault(name, style)
    for name, style in found.items():
        module = modules[name]
        if not isinstance(module, nn.Linear | nn.Embedding) or style not in CUTS:
            continue
        where = f"TensorParallel.plan: {name!r}, cut by {style}"
        if name not in single:
            raise wrong(where, "weights that another layer has too", '"whole"')
        table = isinstance(module, nn.Embedding)
        if table and _peculiar(module):
            raise wrong(where, "max_norm, sparse or scale_grad_by_freq", '"whole"')
        if table and style == "row" and _rows_for_all(module, ways):
            continue  # they need not divide evenly
        size = module.weight.shape[int((style == "row") != table)]
        if size % ways:
            raise wrong(where, size, f"a multiple of ways, which is {ways}")
    # What is inside of a module that is declared whole stays whole too.
    for name, style in list(found.items()):
        if style == "whole":
            within = [n for n in modules if n.startswith(f"{name}." if name else "")]
            found |= {n: "whole" for n in within if n not in found}
    return found


def _peculiar(table: nn.Embedding) -> bool:
    """Whether a table does more than to look up."""
    return table.max_norm is not None or table.sparse or table.scale_grad_by_freq


def _rows_for_all(table: nn.Embedding, ways: int) -> bool:
    """Whether each part of a table has a row at least."""
    rows = table.num_embeddings
    return -(-rows // ways) * (ways - 1) < rows


def _unshared(model: nn.Module) -> dict[str, nn.Module]:
    """Modules whose parameters nobody else has: a cut would tear a tie."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {
        name: module
        for name, module in model.named_modules()
        if all(owners[id(p)] == 1 for p in module.parameters(recurse=False))
    }


@dataclass
class _Call:
    """A linear layer's only call: nodes of the graph of gradients, and what it took."""

    taken: Tensor
    before: Any
    after: Any


@contextmanager
def _recorded(
    model: nn.Module, linears: Mapping[str, nn.Module]
) -> Iterator[dict[str, _Call | None]]:
    """The calls of layers, in order; None for one that is called more than once."""
    calls: dict[str, _Call | None] = {}

    def noting(name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if name in calls or len(inputs) != 1:
                calls[name] = None
                return
            calls[name] = _Call(inputs[0].detach(), inputs[0].grad_fn, output.grad_fn)

        return note

    with _hooked([(module, noting(name), False) for name, module in linears.items()]):
        yield calls


@contextmanager
def _hooked(hooks: Sequence[tuple[nn.Module, Callable[..., Any], bool]]) -> Iterator[None]:
    """Hooks after modules, or before them where it says so, for as long as the block runs."""
    handles = [
        module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
        for module, hook, before in hooks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _candidates(
    calls: Mapping[str, _Call | None],
    linears: Mapping[str, nn.Linear],
    outputs: Any,
    ways: int,
    at_least: int,
) -> list[Pair]:
    """Layers that lead to one other only, and nothing else that learns does."""
    known = {n: c for n, c in calls.items() if c is not None and c.after is not None}
    order = list(known)
    by_node = {call.after: name for name, call in known.items()}
    ends = [t.grad_fn for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.grad_fn]
    pairs: list[Pair] = []
    taken: set[str] = set()
    for row, call in known.items():
        found = None if row in taken or call.before is None else _sources(call.before, by_node)
        if found is None or not found[0] or found[0] & taken:
            continue
        columns, region = found
        size = sum(p.numel() for n in (*columns, row) for p in linears[n].parameters())
        even = all(linears[n].out_features % ways == 0 for n in columns)
        if not even or linears[row].in_features % ways or size < at_least or row in columns:
            continue
        if _reached(ends, stop=call.after) & region:
            continue  # something else takes it too
        pairs.append(Pair(tuple(sorted(columns, key=order.index)), row))
        taken |= {*columns, row}
    return pairs


def _sources(begin: Any, by_node: Mapping[Any, str]) -> tuple[set[str], set[Any]] | None:
    """The layers that a node's value comes from, and the nodes up to them; None if from others."""
    columns: set[str] = set()
    seen: set[Any] = set()
    todo = [begin]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in by_node:
            columns.add(by_node[node])
        elif hasattr(node, "variable"):  # a parameter: its gradient would be a part's alone
            return None
        else:
            todo.extend(before for before, _ in node.next_functions)
    return columns, seen


def _reached(ends: Sequence[Any], stop: Any) -> set[Any]:
    seen: set[Any] = set()
    todo = list(ends)
    while todo:
        node = todo.pop()
        if node is None or node is stop or node in seen:
            continue
        seen.add(node)
        todo.extend(before for before, _ in node.next_functions)
    return seen


def _held(
    model: nn.Module,
    sample: Sequence[Tensor],
    ways: int,
    linears: Mapping[str, nn.Linear],
    calls: Mapping[str, _Call | None],
    pairs: list[Pair],
) -> list[Pair]:
    """The pairs in which each part of the outputs leads to that part of the inputs."""
    part = 0
    while pairs and part < ways:
        broken = _broken(model, sample, (part, ways), linears, calls, pairs)
        pairs = [pair for pair in pairs if pair not in broken]
        part = 0 if broken else part + 1  # what came after a broken one was not seen
    return pairs


def _broken(
    model: nn.Module,
    sample: Sequence[Tensor],
    part: tuple[int, int],
    linears: Mapping[str, nn.Linear],
    calls: Mapping[str, _Call | None],
    pairs: Sequence[Pair],
) -> list[Pair]:
    open_: list[Pair] = []
    broken: list[Pair] = []

    def cut(tensor: Tensor) -> Tensor:
        return tensor.chunk(part[1], -1)[part[0]]

    def begin(pair: Pair) -> Callable[..., Tensor]:
        def gives(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if pair not in open_:
                open_.append(pair)
            return cut(output).contiguous()

        return gives

    def end(pair: Pair) -> Callable[..., tuple[Tensor]]:
        def takes(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            call = calls[pair.row]
            assert call is not None
            expected = cut(call.taken)
            same = inputs[0].shape == expected.shape
            if not same or not torch.allclose(inputs[0], expected, rtol=1e-4, atol=1e-5):
                broken.append(pair)
            open_.remove(pair)
            return (call.taken,)

        return takes

    hooks = [(linears[n], begin(pair), False) for pair in pairs for n in pair.columns]
    hooks += [(linears[pair.row], end(pair), True) for pair in pairs]
    with _hooked(hooks), torch.no_grad():
        try:
            model(*sample)
        except Exception:  # whatever a model says to a part of what it expects
            return [*broken, *(open_ or pairs)]
    return broken + open_


def _drawing(
    model: nn.Module,
    sample: Sequence[Tensor],
    linears: Mapping[str, nn.Linear],
    pairs: Sequence[Pair],
) -> list[Pair]:
    """The pairs, each told whether training draws random numbers within it."""
    begun: dict[str, Tensor] = {}
    draws: set[str] = set()

    def state() -> Tensor:
        device = next(model.parameters()).device
        cuda = device.type == "cuda"
        return torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state()

    def begin(pair: Pair) -> Callable[..., None]:
        def note(*_: Any) -> None:
            begun.setdefault(pair.row, state())

        return note

    def end(pair: Pair) -> Callable[..., None]:
        def note(*_: Any) -> None:
            if not torch.equal(begun[pair.row], state()):
                draws.add(pair.row)

        return note

    hooks = [(linears[p.columns[0]], begin(p), False) for p in pairs]
    hooks += [(linears[p.row], end(p), True) for p in pairs]
    with _hooked(hooks), _drawn_freely(model), torch.no_grad():
        model(*sample)
    return [Pair(pair.columns, pair.row, pair.row in draws) for pair in pairs]


@contextmanager
def _drawn_freely(model: nn.Module) -> Iterator[None]:
    """As in training, without ``nn.Dropout`` and what learns from batches; nothing is used up."""
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    still = (nn.Dropout, nn.modules.batchnorm._BatchNorm)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for module, _ in modes:
            module.training = not isinstance(module, still)
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
