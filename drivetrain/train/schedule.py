"""Learning-rate schedules: a pure function from the step to a factor of the learning rate."""

import math
from dataclasses import dataclass
from typing import Protocol

from drivetrain.core.errors import wrong


class Schedule(Protocol):
    """Says by what the learning rate is multiplied at each step."""

    def factor(self, step: int, total: int | None) -> float:
        """The factor for optimizer step ``step`` (from 0) of ``total``, None if unknown."""
        ...


def _check_warmup(schedule: object, warmup: float) -> None:
    if warmup < 0 or (isinstance(warmup, float) and warmup >= 1):
        where = f"{type(schedule).__name__}.warmup"
        raise wrong(where, warmup, "a number of steps, or a share of all steps below 1.0")


def _needed(total: int | None, schedule: object) -> int:
    if total is None:
        raise ValueError(
            f"{type(schedule).__name__} needs the number of steps, and the source does not know "
            "how many rows it has: give the schedule steps=, or use a constant one."
        )
    return total


def _warm(schedule: object, warmup: float, step: int, total: int | None) -> tuple[float, int]:
    """The factor of the warm-up, and how many steps it takes."""
    steps = warmup
    if isinstance(warmup, float):
        steps = math.ceil(warmup * _needed(total, schedule)) if warmup else 0
    steps = int(steps)
    return (step + 1) / (steps + 1) if step < steps else 1.0, steps


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The learning rate itself, after a linear warm-up.

    Attributes:
        warmup: a number of steps, or a share of all steps as a float below 1.
    """

    warmup: float = 0

    def __post_init__(self) -> None:
        _check_warmup(self, self.warmup)

    def factor(self, step: int, total: int | None) -> float:
        """``(step + 1) / (warmup + 1)`` while warming up, then 1."""
        return _warm(self, self.warmup, step, total)[0]


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from 1 down to ``floor``, after a linear warm-up.

    Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, eq. 5.

    Attributes:
        warmup: a number of steps, or a share of all steps as a float below 1.
        floor: the factor at the end.
        steps: the length, for sources that don't know theirs; None takes the whole training.
    """

    warmup: float = 0
    floor: float = 0.0
    steps: int | None = None

    def __post_init__(self) -> None:
        _check_warmup(self, self.warmup)
        if not 0 <= self.floor <= 1:
            raise wrong("Cosine.floor", self.floor, "a factor from 0 to 1")
        if self.steps is not None and self.steps < 1:
            raise wrong("Cosine.steps", self.steps, "at least 1, or None")

    def factor(self, step: int, total: int | None) -> float:
        """The factor of the learning rate; ``floor`` after the last step."""
        total = _needed(total if self.steps is None else self.steps, self)
        warm, start = _warm(self, self.warmup, step, total)
        if step < start:
            return warm
        share = min((step - start) / max(total - start, 1), 1.0)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True, kw_only=True)
class StepDecay:
    """The learning rate times ``by`` after each ``every`` steps, after a linear warm-up.

    Attributes:
        every: optimizer steps between two decays.
        by: the factor of one decay.
        warmup: a number of steps, or a share of all steps as a float below 1.
    """

    every: int
    by: float = 0.1
    warmup: float = 0

    def __post_init__(self) -> None:
        _check_warmup(self, self.warmup)
        if self.every < 1:
            raise wrong("StepDecay.every", self.every, "at least 1 step")
        if not 0 < self.by <= 1:
            raise wrong("StepDecay.by", self.by, "a factor above 0 and up to 1")

    def factor(self, step: int, total: int | None) -> float:
        """``by ** (step // every)``, counted from the start."""
        return _warm(self, self.warmup, step, total)[0] * self.by ** (step // self.every)
