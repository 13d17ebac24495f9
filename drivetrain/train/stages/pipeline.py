"""Micro-batches through the stages of a model: the step of a pipeline, and what it exchanges."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from drivetrain.train.loop.step import Step, to_float
from drivetrain.train.stages import parcels
from drivetrain.train.stages.link import Entering, Link
from drivetrain.train.stages.order import PipelineOrder, actions
from drivetrain.train.stages.stage import Stage
from drivetrain.train.together.buckets import Buckets
from drivetrain.train.together.mesh import Mesh

Part = tuple[list[Tensor], dict[str, Tensor], int]
"""A micro-batch: inputs, targets, rows."""


class Pipeline:
    """The :class:`drivetrain.train.loop.step.Exchange` of processes that hold a stage each.

    Gradients are summed over the copies of a stage, the loss over all; the last stages know it.

    Args:
        stage: of this process.
        mesh: its copies and its neighbours.
        link: to these.
        order: in which micro-batches go through.
        micro_batches: to a batch of a copy.
        bucket_bytes: of gradients that are sent at once.
    """

    def __init__(
        self,
        stage: Stage,
        mesh: Mesh,
        link: Link,
        *,
        order: PipelineOrder,
        micro_batches: int,
        bucket_bytes: int,
    ) -> None:
        self.stage, self.mesh, self.link = stage, mesh, link
        self.order: PipelineOrder = order
        self.micro_batches = micro_batches
        self._copies = Buckets(stage, mesh.data, bucket_bytes) if mesh.data.size > 1 else None

    settled = True

    def begin(self, loss: Tensor) -> None:
        """The last backward before an update comes."""
        if self._copies is not None:
            self._copies.begin(loss)

    def finish(self, loss: Tensor) -> Tensor:
        """Sum the gradients of the copies; the sum of the losses."""
        if self._copies is not None:
            loss = self._copies.finish(loss)
        return self.mesh.model.sum(loss.float().clone())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Nothing: what is summed is used up."""
        return {}, {}

    def load(self, common: Mapping[str, Tensor], own: Sequence[Mapping[str, Tensor]]) -> None:
        """Nothing to go back to."""


class PipelinedStep(Step):
    """A step whose model is the stage that this process holds.

    Attributes:
        most_held: the most micro-batches whose activations this process held at a time.
    """

    model: Stage
    most_held = 0

    def _learn(
        self, inputs: Sequence[Tensor], targets: Mapping[str, Tensor], rows: int, *, last: bool
    ) -> None:
        pipe = self._pipe
        parts = divided(inputs, targets, pipe.micro_batches)
        held: dict[int, tuple[Entering | None, list[Tensor]]] = {}
        order = actions(pipe.order, self.model.index, self.model.count, len(parts))
        for at, (backward, number) in enumerate(order):
            if backward:
                if last and at == len(order) - 1:
                    self._begin()
                self._backward(number, *held.pop(number))
            else:
                held[number] = self._forward_part(number, parts[number])
                self.most_held = max(self.most_held, len(held))
        pipe.link.settle()

    def _begin(self) -> None:
        loss = torch.zeros((), device=self.device) if self._loss is None else self._loss
        self._pipe.begin(loss)

    @property
    def _pipe(self) -> Pipeline:
        assert isinstance(self.exchange, Pipeline)
        return self.exchange

    def _forward_part(self, number: int, part: Part) -> tuple[Entering | None, list[Tensor]]:
        """Take a micro-batch forward; what came in, and what backward begins at."""
        inputs, targets, rows = part
        entering, given = self._through(inputs)
        if self.model.last:
            loss = self.loss(given, targets) * (rows / self.full)
            self._add(loss)
            return entering, [loss]
        self._pipe.link.send(number, given)
        return entering, [t for t in parcels.tensors(given) if t.requires_grad]

    def _through(self, inputs: Sequence[Tensor]) -> tuple[Entering | None, Any]:
        """What came from the stage before, and what this one makes of it."""
        entering = None if self.model.first else self._pipe.link.receive()
        received = () if entering is None else entering.value
        if not self._half:
            return entering, self._forward(received, inputs)
        with self._autocast:
            given = self._forward(received, inputs)
        return entering, to_float(given) if self.model.last else given

    def _backward(self, number: int, entering: Entering | None, given: list[Tensor]) -> None:
        """Take a micro-batch backward."""
        link = self._pipe.link
        gradients: list[Tensor] | None = None
        if not self.model.last:
            gradients = link.receive_gradients(number, given)
        if given:
            torch.autograd.backward(given, gradients)
        if entering is not None:
            link.send_gradients(entering.gradients())

    def scored(
        self,
        scores: Callable[[Any, Mapping[str, Tensor]], Mapping[str, Tensor]],
        inputs: Sequence[Tensor],
        targets: Mapping[str, Tensor],
    ) -> Mapping[str, Tensor]:
        """As :meth:`drivetrain.train.loop.step.Step.scored`; the last stage tells the others."""
        pipe = self._pipe
        sums: dict[str, float] = {}
        parts = divided(inputs, targets, pipe.micro_batches)
        total = sum(rows for _, _, rows in parts)
        for number, (part, some, rows) in enumerate(parts):
            _, given = self._through(part)
            if not self.model.last:
                pipe.link.send(number, given)
                continue
            for name, value in scores(given, some).items():
                sums[name] = sums.get(name, 0.0) + float(value) * (rows / total)
        pipe.link.settle()
        told = pipe.link.told(sums if self.model.last else None)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in told.items()}

    def _clip(self, most: float) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch._foreach_norm(gradients) if gradients else ()  # pyright: ignore[reportPrivateImportUsage]
        squares = sum(
            (norm.float().square() for norm in norms), torch.zeros((), device=self.device)
        )
        total = self._pipe.mesh.model.sum(squares).sqrt()
        scale = (most / (total + 1e-6)).clamp(max=1.0)  # as torch's own clip_grad_norm_
        torch._foreach_mul_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage]


def divided(inputs: Sequence[Tensor], targets: Mapping[str, Tensor], most: int) -> list[Part]:
    """A batch as micro-batches of as many rows each, to within one; of few rows there are fewer.

    Args:
        inputs: in order, rows first; at least one row.
        targets: by name, rows first.
        most: how many micro-batches.
    """
    rows = len(inputs[0])
    count = min(most, rows)
    ends = [rows * number // count for number in range(count + 1)]
    return [
        (
            [tensor[begin:end] for tensor in inputs],
            {name: tensor[begin:end] for name, tensor in targets.items()},
            end - begin,
        )
        for begin, end in pairwise(ends)
    ]
