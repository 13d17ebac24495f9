"""A model of another framework under the one loop: what it offers, its step, its checkpoints."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from drivetrain.core.batch import Array
from drivetrain.core.graph import Graph
from drivetrain.core.metric import Note
from drivetrain.core.schema import FeatureSchema
from drivetrain.train.checkpoints.checkpoint import Checkpoint
from drivetrain.train.checkpoints.resume import Keep, below
from drivetrain.train.foreign.outputs import mapped
from drivetrain.train.loop.loop import Loop, Position
from drivetrain.train.loop.step import Step

Arrays = Mapping[str, Array]


class Foreign(Protocol):
    """A model of another framework that is being trained, with its optimizer.

    At its border arrays are numpy's, so that the loop, the order of the rows, validation and
    checkpoints are those of every other training.
    """

    def update(self, inputs: Sequence[Array], targets: Arrays, rate: float) -> Any:
        """Update the weights by one batch at this learning rate.

        Returns:
            The mean loss over the batch, before the update; ``float`` of it may wait for a device.
        """
        ...

    def outputs(self, inputs: Sequence[Array]) -> Any:
        """What the model answers when it is not training: arrays, alone, in a tuple or a dict."""
        ...

    def measure(self, outputs: Any, targets: Arrays) -> float:
        """The loss of what :meth:`outputs` gave."""
        ...

    def weights(self) -> dict[str, Array]:
        """All that the next answer depends on, and what dropout draws from."""
        ...

    def optimizer(self) -> dict[str, Array]:
        """All else that the next update depends on."""
        ...

    def load(self, weights: Arrays, optimizer: Arrays | None = None) -> None:
        """Go back to what :meth:`weights` and :meth:`optimizer` gave."""
        ...

    def graph(self, features: FeatureSchema) -> Graph:
        """From ``features.tensors`` to the outputs, called as :func:`outputs.inner` calls them.

        Raises:
            ValueError: the framework's converter can't.
        """
        ...


class ForeignModule(nn.Module):
    """A foreign model as the loop sees any: tensors in and out, but no gradients.

    Args:
        foreign: the model.
    """

    def __init__(self, foreign: Foreign) -> None:
        super().__init__()
        self.foreign = foreign

    def forward(self, *inputs: Tensor) -> Any:
        """What it answers when it is not training."""
        outputs = self.foreign.outputs([tensor.numpy() for tensor in inputs])
        return mapped(outputs, _tensor)

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Its weights."""
        return {name: _tensor(array) for name, array in self.foreign.weights().items()}


class ForeignStep(Step):
    """A step whose forward, backward and update are another framework's.

    Args:
        foreign: the model with its optimizer.
        rate: the learning rate of an update, counted from 0.
    """

    def __init__(self, foreign: Foreign, rate: Callable[[int], float]) -> None:
        self.foreign = foreign
        self.model = ForeignModule(foreign)
        self.rate = rate
        self.accumulate = 1
        self.exchange = None
        self.average = None
        self.done = 0
        self.losses = []
        self.parameters = []
        self.device = torch.device("cpu")

    def __call__(
        self,
        inputs: Sequence[Tensor],
        targets: Mapping[str, Tensor],
        rows: int,
        of_all: int | None = None,
    ) -> bool:
        """Take one batch and update."""
        arrays = {name: tensor.numpy() for name, tensor in targets.items()}
        loss = self.foreign.update([t.numpy() for t in inputs], arrays, self.rate(self.done))
        self.losses.append(loss)
        self.done += 1
        return True

    def outputs(self, inputs: Sequence[Tensor]) -> Any:
        """What the model answers when it is not training."""
        return self.model(*inputs)

    def flush(self) -> bool:
        """Nothing waits."""
        return False

    def read_losses(self) -> list[float]:
        """The losses of the updates since the last reading: the only wait for the device."""
        values = [float(loss) for loss in self.losses]
        self.losses.clear()
        return values

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """The model as it would be served, which it always is to the loop."""
        with torch.no_grad():
            yield self.model


class ForeignKeep(Keep):
    """Checkpoints of a foreign model: its variables by name, and the loop's own place."""

    def save(self, loop: Loop) -> None:
        """Write a checkpoint now.

        Raises:
            ArithmeticError: the loss or a weight is not finite; nothing is written.
            OSError: the one before could not be written.
        """
        loop.read()
        foreign = _foreign(loop)
        state: dict[str, Any] = {"step": loop.step.done, "position": asdict(loop.position)}
        tensors = _under("model", _finite(foreign.weights(), loop))
        tensors |= _under("optimizer", foreign.optimizer())
        for name, callback in self.keeps.items():
            state[f"callback/{name}"], held = callback.state()
            tensors |= {f"callback/{name}/{key}": tensor for key, tensor in held.items()}
        self.checkpoints.save(Checkpoint(state, tensors), loop.step.done)
        self._next = time.perf_counter() + self.seconds

    def resume(self, loop: Loop) -> bool:
        """Go on from the newest whole checkpoint; whether it was the final one."""
        found = self.checkpoints.latest()
        if found is None:
            return False
        checkpoint, final = found
        state, foreign = checkpoint.state, _foreign(loop)
        weights = _read(checkpoint, "model/")
        if final:
            foreign.load(weights)
            text = f"already trained, {state['step']} steps: its weights were read"
        else:
            foreign.load(weights, _read(checkpoint, "optimizer/"))
            for name, callback in self.keeps.items():
                callback.load(
                    state[f"callback/{name}"], below(checkpoint.tensors, f"callback/{name}/")
                )
            loop.position = Position(**state["position"])
            loop.step.done = state["step"]
            text = (
                f"resumed at step {loop.step.done}, epoch {loop.position.epoch}, "
                f"batch {loop.position.batch}"
            )
        loop.emit(Note(stage="train", text=text))
        return final

    def finish(self, loop: Loop) -> None:
        """Write the final weights: the same training is then never run again."""
        weights = _under("model", _finite(_foreign(loop).weights(), loop))
        self.checkpoints.save(
            Checkpoint({"step": loop.step.done}, weights), loop.step.done, final=True
        )


def _foreign(loop: Loop) -> Foreign:
    return cast(ForeignStep, loop.step).foreign


def _under(prefix: str, arrays: Arrays) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": _tensor(array) for name, array in arrays.items()}


def _read(checkpoint: Checkpoint, prefix: str) -> dict[str, Array]:
    return {name: t.numpy() for name, t in below(checkpoint.tensors, prefix).items()}


def _tensor(array: Array) -> Tensor:
    """A copy: what a framework lends may be read-only, or change with the next update."""
    return torch.from_numpy(np.array(array))


def _finite(weights: dict[str, Array], loop: Loop) -> dict[str, Array]:
    for name, array in weights.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            step, position = loop.step, loop.position
            raise ArithmeticError(
                f"the weights {name!r} are not finite after step {step.done - 1}, epoch "
                f"{position.epoch}, batch {position.batch - 1}, with learning rate "
                f"{step.rate(max(step.done - 1, 0)):g}: try a smaller train.lr."
            )
    return weights
