"""One training step: forward, backward and, when enough rows were seen, an update."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from drivetrain.train.checkpoints.pieces import alike
from drivetrain.train.loop.device import compiled


class Exchange(Protocol):
    """Sums gradients over the processes that train together."""

    @property
    def settled(self) -> bool:
        """Whether all have the same weights between this update and the next."""
        ...

    def begin(self, loss: Tensor) -> None:
        """The last backward before an update comes: what it finishes may be sent at once.

        Args:
            loss: this process's part of the update's loss.
        """
        ...

    def finish(self, loss: Tensor) -> Tensor:
        """Put the sums in the place of the gradients; the sum of the losses.

        Args:
            loss: as :meth:`begin` had it, or for the first time where no backward came: then
                this process had no rows.
        """
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What a checkpoint must keep: what all processes have in common, and this one's own."""
        ...

    def load(self, common: Mapping[str, Tensor], own: Sequence[Mapping[str, Tensor]]) -> None:
        """Go back to what :meth:`state` gave.

        Args:
            common: of all.
            own: by the rank that gave it; there may have been more processes, or fewer, than now.
        """
        ...


class Step:
    """Forward, backward, update. A strategy that shares gradients gives an ``exchange``.

    Args:
        model: called with the input tensors in order.
        loss: called with the model's outputs and the targets; answers a scalar.
        optimizer: over the model's parameters.
        rate: the learning rate of an update, counted from 0.
        batch_size: the rows of a full batch, of all processes together.
        accumulate: batches an update. Their gradients add up to that of one large batch, also
            where the last one is smaller.
        clip_norm: the largest norm of all gradients together; None for any.
        precision: ``float32``, or ``bfloat16`` for products while weights stay float32.
        average: the decay of the exponential moving average of the weights; None for none. It
            follows faster at the start: ``(1 + done) / (10 + done)`` while that is smaller.
        compile: run the model through ``torch.compile``.
        exchange: sums gradients over processes; None in a process by itself.

    Attributes:
        done: updates so far.
        losses: the loss of each update since they were last read, on the model's device.
        device: where the model is.
        scale: what the gradients of the update at hand are multiplied by after they were summed.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Mapping[str, Tensor]], Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        rate: Callable[[int], float],
        batch_size: int,
        accumulate: int = 1,
        clip_norm: float | None = None,
        precision: str = "float32",
        average: float | None = None,
        compile: bool = False,
        exchange: Exchange | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.rate = rate
        self.full = batch_size * accumulate
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.exchange = exchange
        self.done = 0
        self.scale = 1.0
        self.losses: list[Tensor] = []
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.average = None if average is None else [p.detach().clone() for p in self.parameters]
        self.decay = average
        self._alike = alike(self.parameters)
        self.device = self.parameters[0].device
        self._autocast = (
            nullcontext()
            if precision == "float32"
            else torch.autocast(self.device.type, torch.bfloat16, cache_enabled=accumulate == 1)
        )
        self._half = precision != "float32"
        self._forward = compiled(model) if compile else model
        self._batches = 0  # since the last update, with their rows and their loss
        self._rows = 0
        self._loss: Tensor | None = None

    def __call__(
        self,
        inputs: Sequence[Tensor],
        targets: Mapping[str, Tensor],
        rows: int,
        of_all: int | None = None,
    ) -> bool:
        """Take one batch; whether the weights were updated.

        Args:
            inputs: in order.
            targets: by name.
            rows: of this process; 0 if none was left for it.
            of_all: rows that all processes take together; None if this is the only one.
        """
        if self.accumulate == 1 and self.exchange is None:
            loss = self.loss(self.outputs(inputs), targets)
            loss.backward()
            self.losses.append(loss.detach())
            self._update()
            return True
        self._batches += 1
        self._rows += rows if of_all is None else of_all
        last = self._batches == self.accumulate
        if rows:
            self._learn(inputs, targets, rows, last=last)
        else:
            self.go_along(inputs, targets)
        return self.flush() if last else False

    def _learn(
        self, inputs: Sequence[Tensor], targets: Mapping[str, Tensor], rows: int, *, last: bool
    ) -> None:
        """Add the gradients of some rows; ``last`` says whether an update follows."""
        part = self.loss(self.outputs(inputs), targets) * (rows / self.full)
        loss = self._add(part)
        if last and self.exchange is not None:
            self.exchange.begin(loss)
        part.backward()

    def _add(self, part: Tensor) -> Tensor:
        """Count a part of the update's loss; its sum so far."""
        held = part.detach()
        self._loss = held if self._loss is None else self._loss + held
        return self._loss

    def go_along(self, inputs: Sequence[Tensor], targets: Mapping[str, Tensor]) -> None:
        """Do what others need of a process that has no rows: nothing, where it holds the model.

        Args:
            inputs: in order, without rows.
            targets: by name, without rows.
        """

    def outputs(self, inputs: Sequence[Tensor]) -> Any:
        """The model's outputs, in float32."""
        if not self._half:
            return self._forward(*inputs)
        with self._autocast:
            return to_float(self._forward(*inputs))

    def scored(
        self,
        scores: Callable[[Any, Mapping[str, Tensor]], Mapping[str, Tensor]],
        inputs: Sequence[Tensor],
        targets: Mapping[str, Tensor],
    ) -> Mapping[str, Tensor]:
        """What ``scores`` says of the model's outputs.

        Args:
            scores: means over some rows, by name.
            inputs: in order.
            targets: by name.
        """
        return scores(self.outputs(inputs), targets)

    def flush(self) -> bool:
        """Update with the batches that wait for one; whether there were any."""
        if not self._batches:
            return False
        loss = self._loss
        if loss is None:  # of these batches no row was this process's
            loss = torch.zeros((), device=self.device)
        self.scale = self.full / self._rows
        if self.exchange is not None:
            loss = self.exchange.finish(loss)
        if self._rows != self.full:  # the last group of an epoch has fewer rows
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(self.scale)
            loss = loss * self.scale
        self.losses.append(loss)
        self._batches, self._rows, self._loss = 0, 0, None
        self._update()
        return True

    def _update(self) -> None:
        rate = self.rate(self.done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.clip_norm is not None:
            self._clip(self.clip_norm)
        self.optimizer.step()
        for parameter in self.parameters:  # what zero_grad does, without its hooks and records
            parameter.grad = None
        if self.average is not None:
            assert self.decay is not None
            decay = min(self.decay, (1 + self.done) / (10 + self.done))
            for places in self._alike:
                averages = [self.average[place] for place in places]
                parameters = [self.parameters[place] for place in places]
                get_ema_multi_avg_fn(decay)(averages, parameters, None)
        self.done += 1

    def _clip(self, most: float) -> None:
        nn.utils.clip_grad_norm_(self.parameters, most, foreach=True)

    def read_losses(self) -> list[float]:
        """The losses of the updates since the last reading: the only wait for the device."""
        if not self.losses:
            return []
        values = torch.stack(self.losses).tolist()
        self.losses.clear()
        return values

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """The model as it would be served: averaged weights, no dropout, no gradients."""
        held = [p.detach().clone() for p in self.parameters] if self.average else []
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                _copy(self.parameters, self.average or [])
                yield self.model
        finally:
            _copy(self.parameters, held)
            self.model.train(training)


@torch.no_grad()
def _copy(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Set parameters in place, where there are values for them."""
    for parameter, value in zip(parameters, values, strict=bool(values)):
        parameter.copy_(value)


def to_float(outputs: Any) -> Any:
    """Floating tensors in float32, through tuples, lists and mappings."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.is_floating_point() else outputs
    if isinstance(outputs, Mapping):
        return {name: to_float(value) for name, value in outputs.items()}
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return type(outputs)(*map(to_float, outputs))
    if isinstance(outputs, tuple | list):
        return type(outputs)(map(to_float, outputs))
    return outputs
