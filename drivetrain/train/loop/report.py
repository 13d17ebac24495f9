"""Tells the metric stream how training goes, without waiting for the device at each step."""

import time
from typing import Any

from torch import Tensor

from drivetrain.core.metric import Metric, Progress
from drivetrain.train.loop.loop import Loop
from drivetrain.train.loop.telemetry import Telemetry


class Report:
    """Emits the mean loss and the learning rate every so many updates, the rest by the clock.

    Args:
        total: rows of the whole training, or None where nobody knows.
        every: updates between two readings of the loss; the same in every run, so that the
            figures are too.
        seconds: between two signs of progress.
    """

    def __init__(self, total: int | None, *, every: int = 100, seconds: float = 0.25) -> None:
        self.total = total
        self.every = every
        self.seconds = seconds
        self._next = 0.0
        self._telemetry = Telemetry()

    def after_update(self, loop: Loop) -> None:
        """Report if it is time."""
        now = time.perf_counter()
        self._telemetry.begin(loop)  # the first update is a warm-up: rates count from its end
        if loop.step.done % self.every == 0:
            self._figures(loop)
        if now >= self._next:
            self._next = now + self.seconds
            self._progress(loop)
            self._telemetry.tell(loop)

    def after_epoch(self, loop: Loop) -> None:
        """Report what is left of the epoch."""
        self._figures(loop)
        self._progress(loop)
        self._telemetry.tell(loop, now=loop.position.epoch == loop.epochs)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Nothing: the losses that wait are the loop's."""
        return {}, {}

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Nothing to go back to."""

    def _figures(self, loop: Loop) -> None:
        losses = loop.read()
        if not losses:
            return
        step = loop.step.done
        loop.emit(Metric(name="train/loss", value=sum(losses) / len(losses), step=step))
        loop.emit(Metric(name="train/lr", value=loop.step.rate(step - 1), step=step))
        losses.clear()

    def _progress(self, loop: Loop) -> None:
        loop.emit(Progress(stage="train", done=loop.position.rows, total=self.total))
