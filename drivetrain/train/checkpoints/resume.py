"""Turns a running loop into a checkpoint and back: every bit that the next step depends on."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from drivetrain.core.metric import Note
from drivetrain.train.checkpoints.behind import Behind
from drivetrain.train.checkpoints.checkpoint import Checkpoint
from drivetrain.train.checkpoints.pieces import Stored, laid, piece
from drivetrain.train.loop.ending import Ending
from drivetrain.train.loop.loop import Callback, Loop, Position
from drivetrain.train.loop.step import Step

_Kind = TypeVar("_Kind")
_GENERATOR = "generator"
_AGREE_SECONDS = 0.5
"""About how long processes go on before they ask one another what is to be done."""
_NAME_BYTES = 256
"""Of a parameter's name that is told to others."""


class Keep:
    """Writes a checkpoint every so many seconds or updates, never one with broken weights.

    It comes last among the callbacks, so that what it writes holds what the others did.

    Args:
        checkpoints: where they go.
        keeps: the callbacks that have something to remember, by name.
        seconds: between two checkpoints; None goes by updates only.
        steps: updates between two checkpoints; None goes by the clock only.
        ending: says whether the training shall end; a checkpoint is then written first.
    """

    def __init__(
        self,
        checkpoints: Behind,
        keeps: Mapping[str, Callback],
        *,
        seconds: float | None,
        steps: int | None,
        ending: Ending | None = None,
    ) -> None:
        self.checkpoints = checkpoints
        self.keeps = keeps
        self.seconds = math.inf if seconds is None else seconds
        self.steps = steps
        self.ending = ending or Ending()
        self._next = time.perf_counter() + self.seconds
        self._looked: tuple[int, float] | None = None
        self._again = 0

    def after_update(self, loop: Loop) -> None:
        """Write one if it is time.

        Raises:
            InterruptedError: the training was asked to end; a checkpoint is written.
        """
        due, end = self._wishes(loop)
        if due or end:
            self.save(loop)
        if end:
            self.checkpoints.wait()
            raise InterruptedError(
                f"the training was asked to end and did, after step {loop.step.done}; the same "
                "command goes on from there."
            )

    def after_epoch(self, loop: Loop) -> None:
        """Write one if it is time: what validation found is then in it."""
        self.after_update(loop)

    def _wishes(self, loop: Loop) -> tuple[bool, bool]:
        """Whether a checkpoint is due, and whether the training shall end; all hear the same."""
        done, exchange = loop.step.done, loop.step.exchange
        due = self.steps is not None and done % self.steps == 0
        if exchange is None:
            return due or time.perf_counter() >= self._next, self.ending.asked
        if not exchange.settled:
            return False, False
        if done < self._again:
            return due, False
        late, end = self._ask(loop)
        return due or late, end

    def _ask(self, loop: Loop) -> tuple[bool, bool]:
        """What the leader's clock says, and whether anybody was asked to end.

        The leader also says after how many updates they ask again: each time costs a message.
        """
        done, now, leads = loop.step.done, time.perf_counter(), loop.group.rank == 0
        steps = 1.0
        if self._looked is not None:
            before, then = self._looked
            steps = min(max(_AGREE_SECONDS * (done - before) / (now - then), 1.0), 10_000.0)
        self._looked = done, now
        wishes = [float(leads and now >= self._next), float(self.ending.asked), steps * leads]
        late, end, agreed = loop.group.sum(torch.tensor(wishes)).tolist()
        self._again = done + int(agreed)
        return late > 0, end > 0

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Nothing."""
        return {}, {}

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Nothing to go back to."""

    def save(self, loop: Loop) -> None:
        """Write a checkpoint now.

        Raises:
            ArithmeticError: the loss or a weight is not finite; nothing is written.
            OSError: the one before could not be written (no space, no permission); the last whole
                one is as it was.
        """
        loop.read()
        check_finite(loop)
        checkpoint = capture(loop, self.keeps)
        self.checkpoints.save(checkpoint, loop.step.done)
        self._next = time.perf_counter() + self.seconds

    def resume(self, loop: Loop) -> bool:
        """Go on from the newest whole checkpoint; whether it was the final one."""
        found = self.checkpoints.latest()
        _check_same(loop, found)
        if found is None:
            return False
        checkpoint, final = found
        if final:
            load_weights(loop.step.model, checkpoint.tensors)
            text = f"already trained, {checkpoint.state['step']} steps: its weights were read"
        else:
            restore(loop, checkpoint, self.keeps)
            text = (
                f"resumed at step {loop.step.done}, epoch {loop.position.epoch}, "
                f"batch {loop.position.batch}"
            )
        loop.emit(Note(stage="train", text=text))
        return final

    def finish(self, loop: Loop) -> None:
        """Write the final weights: the same training is then never run again."""
        check_finite(loop)
        final = Checkpoint({"step": loop.step.done}, dict(unique(loop.step.model)))
        self.checkpoints.save(final, loop.step.done, final=True)


def _check_same(loop: Loop, found: tuple[Checkpoint, bool] | None) -> None:
    """Hold that all go on from one step: a shared disk may show some of them an older listing.

    Raises:
        ConnectionError: they found others; whoever starts them anew finds the same soon.
    """
    step = [-1, 0] if found is None else [int(found[0].state["step"]), int(found[1])]
    steps = [tuple(each.tolist()) for each in loop.group.gather(torch.tensor(step))]
    if len(set(steps)) > 1:
        told = ", ".join("none" if at < 0 else str(at) for at, _ in steps)
        raise ConnectionError(
            f"rank {loop.group.rank} of {loop.group.size}: the processes found checkpoints of "
            f"different steps: {told}."
        )


def capture(loop: Loop, keeps: Mapping[str, Callback]) -> Checkpoint:
    """The loop as a checkpoint. Call it between updates."""
    step = loop.step
    state: dict[str, Any] = {"step": step.done, "position": asdict(loop.position)}
    tensors: dict[str, Tensor] = {f"model/{name}": t for name, t in unique(step.model)}
    state["optimizer"] = {}
    numbers = _numbers(step)
    for place, slots in step.optimizer.state_dict()["state"].items():
        number = numbers[place]
        state["optimizer"][str(number)] = {}
        for name, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{number}/{name}"] = value
            else:
                state["optimizer"][str(number)][name] = value
    for number, average in enumerate(step.average or ()):
        tensors[f"average/{number}"] = average
    for name, callback in keeps.items():
        state[f"callback/{name}"], held = callback.state()
        tensors.update({f"callback/{name}/{key}": tensor for key, tensor in held.items()})
    if step.exchange is not None:
        common, own = step.exchange.state()
        tensors.update({f"exchange/common/{name}": tensor for name, tensor in common.items()})
        for name, tensor in sorted(own.items()):  # all gather in one order, whatever was loaded
            for rank, of_rank in enumerate(loop.group.gather(tensor)):
                tensors[f"exchange/{rank}/{name}"] = of_rank
    streams = torch.cat(loop.group.gather(torch.tensor([loop.group.stream]))).tolist()
    for device, generator in generators(step.model):
        for stream, state_of in zip(streams, loop.group.gather(generator), strict=True):
            tensors[f"{_GENERATOR}/{stream}/{device}"] = state_of
    return Checkpoint(state, tensors)


def restore(loop: Loop, checkpoint: Checkpoint, keeps: Mapping[str, Callback]) -> None:
    """Put the loop where :func:`capture` found it."""
    step, state, tensors = loop.step, checkpoint.state, checkpoint.tensors
    load_weights(step.model, below(tensors, "model/"))
    places = {number: place for place, number in enumerate(_numbers(step))}
    slots = {places[int(number)]: dict(held) for number, held in state["optimizer"].items()}
    for key, tensor in below(tensors, "optimizer/").items():
        number, _, name = key.partition("/")
        slots[places[int(number)]][name] = laid(tensor, step.parameters[int(number)])
    groups = step.optimizer.state_dict()["param_groups"]
    step.optimizer.load_state_dict({"state": slots, "param_groups": groups})
    for number, average in enumerate(step.average or ()):
        average.copy_(laid(tensors[f"average/{number}"], average))
    if step.exchange is not None:
        own: list[dict[str, Tensor]] = []
        while held := _read(tensors, f"exchange/{len(own)}/"):
            own.append(held)
        common = _read(tensors, "exchange/common/")
        if own or common:  # there is neither if one process wrote it by itself
            step.exchange.load(common, own)
    step.done = state["step"]
    weights = dict(unique(step.model))
    for name, callback in keeps.items():
        held = _read(tensors, f"callback/{name}/", weights)  # best weights lie as the weights do
        device = step.parameters[0].device
        # One process by itself has not what several need.
        told = state.get(f"callback/{name}", {})
        callback.load(told, {k: t.to(device) for k, t in held.items()})
    loop.position = Position(**state["position"])
    # A process that was not there goes on with the generators that its own seed gave it.
    for device, generator in _read(tensors, f"{_GENERATOR}/{loop.group.stream}/").items():
        if device == "cpu":
            torch.set_rng_state(generator)
        else:
            torch.cuda.set_rng_state(generator, step.parameters[0].device)


def _numbers(step: Step) -> list[int]:
    """Which of the step's parameters the optimizer's are: how weights lie changes its order."""
    numbers = {id(parameter): number for number, parameter in enumerate(step.parameters)}
    return [numbers[id(p)] for group in step.optimizer.param_groups for p in group["params"]]


def below(tensors: Mapping[str, _Kind], prefix: str) -> dict[str, _Kind]:
    """The tensors whose names start with ``prefix``, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _read(
    tensors: Mapping[str, Tensor | Stored], prefix: str, like: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Those tensors, laid out as the ones of the same name in ``like``, or whole."""
    return {n: laid(t, (like or {}).get(n)) for n, t in below(tensors, prefix).items()}


def unique(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """A model's parameters and lasting buffers, each tensor once however often it is tied."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor.detach()


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor | Stored]) -> None:
    """Copy weights into a model, in place."""
    for name, tensor in unique(model):
        tensor.copy_(laid(weights[name], tensor))


def generators(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """The states of the random generators that the model's device draws from."""
    yield "cpu", torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        yield "cuda", torch.cuda.get_rng_state(device)


def check_finite(loop: Loop) -> None:
    """Refuse weights that are no numbers; processes that hold parts of them all do.

    Raises:
        ArithmeticError: names the parameter, the step and the learning rate.
    """
    broken = (
        name
        for name, p in loop.step.model.named_parameters()
        if not bool(piece(p).tensor.isfinite().all())
    )
    # Who holds other weights than this process knows other names: the name is what is told.
    told = next(broken, "").encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
    heard = loop.group.gather(torch.frombuffer(bytearray(told), dtype=torch.uint8))
    for name in (
        bytes(of_rank.tolist()).rstrip(b"\0").decode(errors="replace") for of_rank in heard
    ):
        if not name:
            continue
        done = loop.step.done
        raise ArithmeticError(
            f"the weights {name!r} are not finite after step {done - 1}, epoch "
            f"{loop.position.epoch}, batch {loop.position.batch - 1}, with learning rate "
            f"{loop.step.rate(max(done - 1, 0)):g}: try a smaller train.lr, or "
            "train.clip_norm=1."
        )
