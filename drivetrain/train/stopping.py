"""When to stop: the declaration, and the count that it is held against."""

import math
from dataclasses import dataclass
from typing import Any

from drivetrain.core.errors import wrong


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Ends training when a validation figure stops getting better; the best weights are kept.

    Attributes:
        patience: how many validations in a row may be no better.
        metric: such as ``validate/loss``.
        least: by how much a figure must be better to count.
        larger: whether larger is better.
    """

    patience: int = 3
    metric: str = "validate/loss"
    least: float = 0.0
    larger: bool = False

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise wrong("EarlyStopping.patience", self.patience, "at least 1 validation")
        if self.least < 0:
            raise wrong("EarlyStopping.least", self.least, "0 or more")
        if not self.metric.startswith("validate/"):
            raise wrong("EarlyStopping.metric", self.metric, "a figure of the validation split")


@dataclass
class Best:
    """The best figure so far and how long ago it was.

    Attributes:
        value: None before the first figure.
        step: the optimizer step that it was measured at.
        since: figures in a row that were no better.
    """

    value: float | None = None
    step: int = 0
    since: int = 0

    def better(self, value: float, step: int, rule: EarlyStopping) -> bool:
        """Count a figure; whether it is the best. One that is no number never is."""
        if math.isfinite(value) and (
            self.value is None
            or (value > self.value + rule.least if rule.larger else value < self.value - rule.least)
        ):
            self.value, self.step, self.since = value, step, 0
            return True
        self.since += 1
        return False

    def to_json(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return dict(vars(self))
