"""A model cut into stages that do, one after the other, what it does."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from drivetrain.core.errors import wrong
from drivetrain.train.stages import parcels
from drivetrain.train.stages.cuts import (
    Place,
    balanced,
    crossing,
    joints,
    named,
    parted,
    places,
    used,
    weigh,
)
from drivetrain.train.stages.followed import Followed, follow, steps
from drivetrain.train.stages.stage import Stage, Whole, lasting, owners, program


@dataclass(frozen=True, eq=False)
class Division:
    """A model and where its stages begin.

    Attributes:
        model: all of it.
        begins: the modules at which stages begin, from the second stage on.
        training: what it does in training, and the steps before which it is cut.
        serving: the same else.
        stages: the stage of each parameter and lasting buffer, by ``id``.
    """

    model: nn.Module
    begins: list[str]
    training: tuple[Followed, list[int]]
    serving: tuple[Followed, list[int]]
    stages: dict[int, int]

    def stage(self, index: int, whole: Whole) -> Stage:
        """One of the stages, which shares its modules with the model.

        Args:
            index: from 0.
            whole: what to know of all of it.
        """
        mine = {each for each, stage in self.stages.items() if stage == index}
        programs = self.programs(True)[index], self.programs(False)[index]
        return Stage(self.model, *programs, index, len(self.begins) + 1, mine, whole)

    def programs(self, training: bool) -> list[GraphModule]:
        """What each stage does."""
        followed, cuts = self.training if training else self.serving
        return [program(followed, cuts, index) for index in range(len(cuts) + 1)]


def divide(
    model: nn.Module, inputs: Sequence[Tensor], stages: int, cut: Sequence[str] = ()
) -> Division:
    """Cut a model into stages, as ``cut`` says or so that all have as much to do.

    The stages are held against the model on ``inputs``, in training and else: they give the same
    bits. Buffers and random generators are left as they were.

    Args:
        model: on its device.
        inputs: some rows.
        stages: how many.
        cut: the modules at which stages begin, from the second stage on; none for any.

    Raises:
        ValueError: the model has fewer parts, none called so, or weights that two stages would
            need; its steps can't be told, or give something else than it does.
    """
    with _undisturbed(model):
        training = follow(model.train(), len(inputs))
        serving = follow(model.eval(), len(inputs))
        model.train()
        kept = {id(tensor): name for name, tensor in lasting(model)}
        if cut:
            chosen = named(training, cut, "Pipelined.cut")
            _check(chosen, (training, serving), kept)
        else:
            chosen = _balanced(training, serving, inputs, stages, kept)
        modes = (
            (training, [places(training)[place] for place in chosen]),
            (serving, [places(serving)[place] for place in chosen]),
        )
        begins = [name.removeprefix("module.") for name, _ in chosen]
        found = Division(model, begins, *modes, owners(model, modes))
        _check_weights(found)
        for mode in (True, False):
            _compare(found, inputs, mode)
    return found


def _balanced(
    training: Followed,
    serving: Followed,
    inputs: Sequence[Tensor],
    stages: int,
    kept: dict[int, str],
) -> list[Place]:
    """The calls at which stages begin that have as much to do."""
    weighed = weigh(training, inputs, parcels.travels)
    here, there = joints(training, kept), joints(serving, kept)
    found, elsewhere, needed = places(training), places(serving), used(training)
    joint = {
        at: place
        for place, at in found.items()
        if at in here
        and elsewhere.get(place) in there
        and any(tensor.requires_grad for tensor in needed[at])
        and not weighed.bound.intersection(crossing(training, at))
    }
    cuts = balanced(training, weighed, stages, joint, lambda tensor: tensor.requires_grad)
    return [joint[at] for at in cuts]


def _check(chosen: Sequence[Place], modes: Sequence[Followed], kept: dict[int, str]) -> None:
    """Refuse cuts that a stage would have to reach over."""
    for followed in modes:
        found = places(followed)
        for place in chosen:
            where = f"Pipelined.cut, {place[0]!r}"
            if place not in found:
                raise wrong(where, "a module of training alone", "one that is served too")
            if shared := parted(followed, found[place], kept):
                allowed = "a cut that leaves all that uses a weight in one stage"
                raise wrong(f"{where}: weights on both sides", ", ".join(shared), allowed)


def _check_weights(division: Division) -> None:
    """Refuse stages that have nothing to train."""
    trained = [p for p in division.model.parameters() if p.requires_grad]
    with_weights = {division.stages[id(p)] for p in trained}
    for index, begin in enumerate(["the inputs", *division.begins]):
        if index not in with_weights:
            where = f"Pipelined: the stage that begins at {begin}"
            raise wrong(where, "no weights to train", "some in each stage; cut elsewhere")


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Put a model's buffers, its mode and the random generators back when the block is done."""
    mode = model.training
    held = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = {t.device for t in model.parameters() if t.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        model.train(mode)
        for buffer, before in held:
            buffer.data.copy_(before)


def _compare(division: Division, inputs: Sequence[Tensor], training: bool) -> None:
    """Hold the stages, one after the other, against the model."""
    model = division.model.train(training)
    with _undisturbed(model), torch.no_grad():
        expected = model(*inputs)
    with _undisturbed(model), torch.no_grad():
        value: Any = ()
        for number, each in enumerate(division.programs(training)):
            value = each(value, tuple(inputs))
            if number < len(division.begins):
                sent = [tensor.clone() for tensor in parcels.tensors(value)]
                value = parcels.put_together(
                    parcels.opened(parcels.sealed(parcels.label(value))), sent
                )
    pairs = zip(_tensors(expected), _tensors(value), strict=True)
    if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs):
        count = len(steps(division.training[0]))
        raise wrong(
            "Pipelined: the model's outputs when its steps are taken one by one",
            f"others than its own ({count} steps)",
            "a forward that depends on its inputs and weights alone",
        )


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
