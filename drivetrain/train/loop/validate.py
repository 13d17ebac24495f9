"""Measures the validation split, keeps the best weights, and says when to stop."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from drivetrain.core.errors import unknown
from drivetrain.core.metric import Metric, Note
from drivetrain.core.seams import Shard
from drivetrain.train.loop.loop import Loop
from drivetrain.train.stopping import Best, EarlyStopping
from drivetrain.train.together.group import Group

Scores = Callable[[Any, Mapping[str, Tensor]], Mapping[str, Tensor]]


class Validate:
    """Means over the rows of the validation split, as ``validate/…``.

    Args:
        scores: means over one batch, by name.
        stopping: when to stop; None trains to the end and keeps the last weights.
        every: updates between two measurements; None measures after each epoch.
        least_rows: batches are at least this large, since no gradients are held.
    """

    def __init__(
        self,
        scores: Scores,
        stopping: EarlyStopping | None = None,
        *,
        every: int | None = None,
        least_rows: int = 4096,
    ) -> None:
        self.scores = scores
        self.stopping = stopping
        self.every = every
        self.least_rows = least_rows
        self.best = Best()
        self.weights: dict[str, Tensor] = {}
        """The best weights, buffers included; empty without early stopping."""

    def after_update(self, loop: Loop) -> None:
        """Validate if it is time."""
        if self.every is not None and loop.step.done % self.every == 0:
            self.validate(loop)

    def after_epoch(self, loop: Loop) -> None:
        """Validate, unless that goes by updates."""
        if self.every is None:
            self.validate(loop)

    def validate(self, loop: Loop) -> None:
        """Measure, emit, keep the best weights, and stop if it is time."""
        figures = self.measure(loop)
        step = loop.step.done
        for name, value in figures.items():
            loop.emit(Metric(name=name, value=value, step=step))
        if self.stopping is None:
            return
        rule = self.stopping
        if not figures:
            raise ValueError("early stopping needs rows to validate on; split 'validate' has none.")
        if rule.metric not in figures:
            raise unknown("metric", rule.metric, figures, "EarlyStopping.metric")
        if self.best.better(figures[rule.metric], step, rule):
            with loop.step.evaluated() as model:
                self.weights = {n: t.detach().clone() for n, t in model.state_dict().items()}
        if self.best.since >= rule.patience:
            loop.position.stopped = True
            loop.emit(
                Note(
                    stage="train",
                    text=f"stopped early after {step} steps: {rule.metric} was best "
                    f"({self.best.value:.6g}) at step {self.best.step}",
                )
            )

    def measure(self, loop: Loop) -> dict[str, float]:
        """Each figure over the whole split; empty if the split is."""
        sums: dict[str, Tensor] = {}
        rows = 0
        # Where there are fewer rows than shards each process measures all of them.
        shared = (loop.examples.rows("validate") or 0) >= loop.shard.count > 1
        shard = loop.shard if shared else Shard()
        size = max(loop.batch_size, self.least_rows) * shard.count
        with loop.step.evaluated():
            for batch in loop.examples.batches("validate", shard, size=size):
                inputs, targets = loop.feed(batch)
                if not len(batch):
                    loop.step.go_along(inputs, targets)
                    continue
                loop.feed.check(batch)
                rows += len(batch)
                for name, value in loop.step.scored(self.scores, inputs, targets).items():
                    part = value.detach().double() * len(batch)
                    sums[name] = sums[name] + part if name in sums else part
        if loop.group.size > 1:  # what all decide by is the same number in all
            sums, rows = _of_all(loop.group, sums, rows)
        return {f"validate/{name}": float(total) / rows for name, total in sums.items()}

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The best figure and the best weights."""
        return self.best.to_json(), self.weights

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`state` gave."""
        self.best = Best(**state)
        self.weights = {name: torch.as_tensor(tensor) for name, tensor in tensors.items()}


def _of_all(group: Group, sums: Mapping[str, Tensor], rows: int) -> tuple[dict[str, Tensor], int]:
    """The sums and rows of all processes, as often as several measured the same rows."""
    *values, total = group.sum(
        torch.stack([*(value.cpu() for value in sums.values()), torch.tensor(rows).double()])
    )
    return dict(zip(sums, values, strict=True)), int(total)
