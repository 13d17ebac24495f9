"""The one loop: epochs of batches through a step; whatever else happens is a callback's."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from drivetrain.core.batch import Batch
from drivetrain.core.metric import Emit
from drivetrain.core.seams import Examples, Order
from drivetrain.train.loop.feed import Feed
from drivetrain.train.loop.step import Step
from drivetrain.train.together.group import Alone, Group


@dataclass
class Position:
    """How far a training has come: what it takes to go on with the very next batch.

    Attributes:
        epoch: epochs that are complete.
        batch: batches taken of the next one.
        at: rows taken of the next one, by all processes together.
        rows: rows taken in all.
        stopped: a callback ended the training.
        window: losses of updates that no report has read yet.
    """

    epoch: int = 0
    batch: int = 0
    at: int = 0
    rows: int = 0
    stopped: bool = False
    window: list[float] = field(default_factory=list[float])


class Callback(Protocol):
    """What happens between updates. What it must remember goes through ``state`` and ``load``."""

    def after_update(self, loop: "Loop") -> None:
        """The weights were updated; called tens of thousands of times a minute."""
        ...

    def after_epoch(self, loop: "Loop") -> None:
        """An epoch is complete."""
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain data and tensors that a checkpoint keeps."""
        ...

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`state` gave."""
        ...


class Loop:
    """Takes batches in a seeded order, through one step, until the epochs are done.

    Args:
        step: takes a batch.
        examples: gives batches.
        feed: turns them into tensors.
        epochs: passes over the rows.
        batch_size: rows a batch, of all processes together.
        seed: of the order of the rows.
        group: the processes that train together.
        drawn: batches have ``batch_size`` rows in the mean, and count as if they had.
        emit: where measurements go.
        callbacks: in the order in which they are called.

    Attributes:
        starved: seconds that this process waited for batches.
    """

    def __init__(
        self,
        step: Step,
        examples: Examples,
        feed: Feed,
        *,
        epochs: int,
        batch_size: int,
        emit: Emit,
        seed: int = 0,
        group: Group | None = None,
        drawn: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.step = step
        self.examples = examples
        self.feed = feed
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed
        self.group = group or Alone()
        self.drawn = drawn
        self.shard = self.group.shard
        self.emit = emit
        self.callbacks = callbacks
        self.position = Position()
        self.starved = 0.0

    def run(self) -> None:
        """Train from the current position to the end.

        Raises:
            ArithmeticError: the loss is no longer a number.
            ValueError: there are no rows, or a target is missing in one.
        """
        position = self.position
        while position.epoch < self.epochs and not position.stopped:
            self._epoch()
            if position.stopped:  # in the middle of an epoch
                return
            self.read()  # what is wrong is named by the epoch that it happened in
            position.epoch += 1
            position.batch = position.at = 0
            for callback in self.callbacks:
                callback.after_epoch(self)

    def _epoch(self) -> None:
        step, feed, position, callbacks = self.step, self.feed, self.position, self.callbacks
        first = position.epoch == 0
        counts = self.drawn or self.group.size > 1
        total = self.examples.rows("train") if counts else None
        batches = self.examples.batches(
            "train",
            self.shard,
            size=self.batch_size,
            order=Order(self.seed, position.epoch),
            start=position.at,
        )
        for batch in self._arriving(batches):
            rows = len(batch)
            if first:
                feed.check(batch)
            of_all = rows if total is None else min(self.batch_size, total - position.at)
            updated = step(*feed(batch), rows, of_all)
            position.batch += 1
            position.at += of_all
            position.rows += of_all
            if updated:
                for callback in callbacks:
                    callback.after_update(self)
                if position.stopped:
                    return
        if step.flush():
            for callback in callbacks:
                callback.after_update(self)
        if not position.batch:
            raise ValueError("split 'train': found 0 rows, allowed: at least 1.")

    def _arriving(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with the wait for each counted."""
        clock, source = time.perf_counter, iter(batches)
        while True:
            begin = clock()
            batch = next(source, None)
            self.starved += clock() - begin
            if batch is None:
                return
            yield batch

    def read(self) -> list[float]:
        """The losses since the last report, the newest included.

        Raises:
            ArithmeticError: one of them is not finite; names the step, the batch and the
                learning rate.
        """
        window, position, step = self.position.window, self.position, self.step
        values = step.read_losses()
        for number, value in enumerate(values):
            if not math.isfinite(value):
                back = len(values) - 1 - number
                at = step.done - 1 - back
                group = (position.batch - 1) // step.accumulate - back
                batch = min((group + 1) * step.accumulate, position.batch) - 1
                raise ArithmeticError(
                    f"the loss is {value} at step {at}, epoch {position.epoch}, batch {batch}, "
                    f"with learning rate {step.rate(at):g}: try a smaller train.lr, or "
                    "train.clip_norm=1."
                )
        window.extend(values)
        return window
