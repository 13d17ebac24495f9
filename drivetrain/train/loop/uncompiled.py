"""Torch's optimizers without their ties to its compiler, whose import takes a second of CPU."""

import inspect
import sys
from typing import Any

import torch
from torch.optim import Optimizer


class Uncompiled(Optimizer):
    """A base behind an optimizer of torch, whose methods are torch's as they are written.

    torch wraps them so that its compiler passes them by, and imports it to tell it so, at the start
    of every training. No optimizer is compiled here.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)


def step_of(kind: type[Optimizer]) -> Any:
    """The step of a class of torch's, as it is written, without gradients of its own."""
    return torch.no_grad()(inspect.unwrap(kind.step))


class SGD(torch.optim.SGD, Uncompiled):
    """:class:`torch.optim.SGD`."""

    step = step_of(torch.optim.SGD)


class Adagrad(torch.optim.Adagrad, Uncompiled):
    """:class:`torch.optim.Adagrad`."""

    step = step_of(torch.optim.Adagrad)


def choose_deterministic(on: bool, *, warn_only: bool) -> None:
    """As :func:`torch.use_deterministic_algorithms`, which also imports the compiler.

    The compiler is told where it is there; whoever compiles imports it before.
    """
    if "torch._inductor.config" in sys.modules:
        torch.use_deterministic_algorithms(on, warn_only=warn_only)
    else:
        torch.set_deterministic_debug_mode(0 if not on else 1 if warn_only else 2)
