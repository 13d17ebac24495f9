"""A model as a list of steps in a row, which is what can be cut into stages."""

import operator
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.utils._pytree import tree_leaves

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
Function = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Followed:
    """What a model does to its inputs.

    Attributes:
        graph: of one placeholder, the inputs as a tuple. Modules in it have their names within
            the model.
        owners: the objects that the graph names: modules, parameters, buffers, constants.
        within: for each node the names of the modules whose ``forward`` it comes from, the
            outermost first.
        opaque: modules that are a step each although they have others in them, by name, with why
            nobody can look into them.
    """

    graph: Graph
    owners: dict[str, Any]
    within: dict[Node, tuple[str, ...]]
    opaque: dict[str, str]


class _OpaqueError(Exception):
    """A module whose ``forward`` can't be followed, or functions that it calls."""

    def __init__(
        self, module: nn.Module, name: str, why: str, functions: Sequence[Function] = ()
    ) -> None:
        super().__init__(why)
        self.module, self.name, self.why, self.functions = module, name, why, functions


class _Root(nn.Module):
    """Calls a model with a known number of inputs, whatever its parameters are called."""

    def __init__(self, model: nn.Module, count: int) -> None:
        super().__init__()
        self.model = model
        self.count = count

    def forward(self, inputs: Any) -> Any:
        return self.model(*(inputs[number] for number in range(self.count)))


class _Follower(Tracer):
    """Looks into modules that have others in them, and takes all others as one step."""

    def __init__(self, closed: set[type[nn.Module]], functions: Sequence[Function]) -> None:
        super().__init__(autowrap_functions=tuple(functions))
        self.closed = closed
        self.functions = functions
        self.inside: list[str] = []
        self.within: dict[Node, tuple[str, ...]] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        hooked = any(getattr(m, hooks) for hooks in _HOOKS)
        if hooked or type(m) in self.closed or next(m.children(), None) is None:
            return True
        known = type(m) in _FORWARDS
        return not known and super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        node = super().create_node(*args, **kwargs)
        self.within[node] = tuple(self.inside)
        return node

    def create_arg(self, a: Any) -> Any:
        # A configuration that is handed to a function stays the object that it is. fx would make
        # another one of its fields, which need not be all that it has.
        given = is_dataclass(a) and not isinstance(a, type)
        if not given or any(isinstance(leaf, Proxy) for leaf in tree_leaves(vars(a))):
            with suppress(NotImplementedError):
                return super().create_arg(a)
        name = f"_object{len(self.root.__dict__)}"
        setattr(self.root, name, a)
        return self.create_node("get_attr", name, (), {})

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        drawn = torch.get_rng_state()
        self.inside.append(_own(name))
        try:
            if type(m) in _FORWARDS:
                outputs = _FORWARDS[type(m)](m, *args, **kwargs)
            else:
                outputs = super().call_module(m, forward, args, kwargs)
        except _OpaqueError:
            raise
        except Exception as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            called = [f for f in _functions(error) if f not in self.functions]
            raise _OpaqueError(m, _own(name), why, called) from error
        finally:
            self.inside.pop()
        if not torch.equal(drawn, torch.get_rng_state()):
            why = "it draws random numbers that depend on none of its inputs"
            raise _OpaqueError(m, _own(name), why)
        return outputs


def _functions(error: BaseException) -> list[Function]:
    """The functions by one of whose calls an error came: what a forward called, by its globals."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [at for at, frame in enumerate(frames) if frame.f_code.co_name == "call_module"]
    for caller, callee in pairwise(frames[own[-1] + 1 if own else 0 :]):
        if caller.f_globals.get("__name__", "torch").partition(".")[0] == "torch":
            continue
        # Functions with one decorator have one code: all that the caller names are meant.
        named = (caller.f_globals.get(name) for name in caller.f_code.co_names)
        found = [f for f in named if f and getattr(f, "__code__", None) is callee.f_code]
        if found:
            return found
    return []


def _own(name: str) -> str:
    """A name within the model, of one within :class:`_Root`."""
    return name.partition(".")[2]


def follow(model: nn.Module, inputs: int) -> Followed:
    """The steps of ``model`` in its present mode, by torch.fx.

    A function that depends on values (it branches, asks for a length, draws a number) is one step,
    and a module whose ``forward`` does is one too, with others of its class; those around it are
    looked into all the same.

    Args:
        model: takes its inputs by position.
        inputs: how many.
    """
    closed: set[type[nn.Module]] = set()
    functions: list[Function] = []
    opaque: dict[str, str] = {}
    while True:
        root, follower = _Root(model, inputs), _Follower(closed, functions)
        with torch.random.fork_rng(devices=[]):
            try:
                graph = follower.trace(root)
            except _OpaqueError as error:
                if error.functions:
                    functions += error.functions
                    continue
                opaque[error.name] = error.why
                closed.add(type(error.module))
                continue
        return Followed(graph, _renamed(graph, root), follower.within, opaque)


def _renamed(graph: Graph, root: _Root) -> dict[str, Any]:
    """Name modules and tensors as the model does; the objects behind the names."""
    owners: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            found: Any = root
            for part in node.target.split("."):
                found = getattr(found, part)
            # A tensor that forward made by itself is a constant, which lies beside the model.
            node.target = _own(node.target) or node.target
            owners[node.target] = found
    return owners


def cheap(node: Node) -> bool:
    """Whether a node takes no time: what is given, a part of it, or a parameter's name.

    Each stage that needs such a value has it, so that it is never sent.
    """
    if node.op in ("placeholder", "get_attr"):
        return True
    part = node.op == "call_function" and node.target in (operator.getitem, getattr)
    return part and all(cheap(source) for source in node.all_input_nodes)


def steps(followed: Followed) -> list[Node]:
    """The nodes that do something, in order."""
    return [node for node in followed.graph.nodes if node.op != "output" and not cheap(node)]


def _encoder(
    encoder: nn.TransformerEncoder,
    src: Any,
    mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool | None = None,
) -> Any:
    """What torch's encoder does, whose own ``forward`` asks what its masks hold."""
    if mask is not None and is_causal is None:
        raise ValueError("it looks whether a mask is causal; say is_causal=True or False")
    if src_key_padding_mask is not None and encoder.enable_nested_tensor:
        raise ValueError("it packs padded rows; make it with enable_nested_tensor=False")
    options: dict[str, Any] = {
        "src_mask": mask,
        "is_causal": bool(is_causal),
        "src_key_padding_mask": src_key_padding_mask,
    }
    for layer in encoder.layers:
        src = layer(src, **options)
    return src if encoder.norm is None else encoder.norm(src)


_FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {nn.TransformerEncoder: _encoder}
"""Stacks of torch that torch.fx can't follow, and what they do."""
