"""The one stream of measurements that every stage emits to and every listener reads."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number.

    Attributes:
        name: slash-separated, such as ``"train/loss"`` or ``"test/auc"``.
        value: the number; its unit is the last part of the name where it has one (``_ms``).
        step: the optimizer step for a series; None for a single figure.
        at_least: the bound below which a probe refuses, if any.
        at_most: the bound above which a probe refuses, if any.
        repeatable: the same on every machine and in every run (a quality), or not (a time).
    """

    name: str
    value: float
    step: int | None = None
    at_least: float | None = None
    at_most: float | None = None
    repeatable: bool = True

    @property
    def holds(self) -> bool:
        """Whether the value is a number within its bounds."""
        above = self.at_least is None or self.value >= self.at_least
        below = self.at_most is None or self.value <= self.at_most
        bounded = self.at_least is not None or self.at_most is not None
        return above and below and not (bounded and self.value != self.value)

    def __str__(self) -> str:
        bound = "" if self.at_least is None else f" (at least {self.at_least:g})"
        bound += "" if self.at_most is None else f" (at most {self.at_most:g})"
        return f"{self.name} {self.value:.6g}{bound}"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a stage has come; ``total`` is None when nobody can know it."""

    stage: str
    done: int
    total: int | None = None
    unit: str = "rows"


@dataclass(frozen=True, kw_only=True)
class Note:
    """One line that a stage wants a person to read: a choice it made, a thing it refused."""

    stage: str
    text: str
    warning: bool = False


Emitted = Metric | Progress | Note
Emit = Callable[[Emitted], None]


def fan_out(listeners: Iterable[Emit]) -> Emit:
    """One emitter that passes everything to each listener, in order."""
    known = tuple(listeners)

    def emit(item: Emitted) -> None:
        for listener in known:
            listener(item)

    return emit


def silent(item: Emitted) -> None:
    """The listener that listens to nothing."""
