"""The strategy for slow networks: processes train by themselves and meet every so many updates."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.core.errors import wrong
from drivetrain.train.all_reduce import AllReduce

if TYPE_CHECKING:
    from torch import nn

    from drivetrain.train.loop.loop import Callback
    from drivetrain.train.loop.step import Exchange, Step
    from drivetrain.train.together.group import Group


@dataclass(frozen=True, kw_only=True)
class DiLoCo(AllReduce):
    """Takes ``every`` updates in each process alone, then one together along their mean.

    What travels is how far each process came since the last meeting, once for ``every`` updates.
    The mean of these is the gradient of an outer SGD with Nesterov's momentum. With
    ``outer_lr=1`` and ``outer_momentum=0`` this is local SGD: the weights are averaged. Checkpoints
    are written at meetings, where all have the same weights. The reported loss is that of rank 0.

    Source: Douillard et al., DiLoCo, 2023, https://arxiv.org/abs/2311.08105

    Attributes:
        every: updates between two meetings.
        outer_lr: the share of the mean way that is gone.
        outer_momentum: of the outer SGD.
    """

    every: int = 20
    outer_lr: float = 0.7
    outer_momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise wrong("DiLoCo.every", self.every, "an integer of at least 1")
        if not self.outer_lr > 0:
            raise wrong("DiLoCo.outer_lr", self.outer_lr, "a number above 0")
        if not 0 <= self.outer_momentum < 1:
            raise wrong("DiLoCo.outer_momentum", self.outer_momentum, "0 or more, and below 1")
        if self.average is not None:
            raise wrong("DiLoCo.average", self.average, "None: the weights are averaged already")
        for name in ("validate_every", "checkpoint_steps"):
            value = getattr(self, name)
            if value is not None and value % self.every:
                raise wrong(f"DiLoCo.{name}", value, f"a multiple of every, which is {self.every}")

    def _exchange(self, model: "nn.Module", group: "Group") -> "Exchange | None":
        from drivetrain.train.together.outer import Apart

        return None if group.size == 1 else Apart(model, group)

    def _first_callbacks(self, step: "Step", group: "Group") -> "tuple[Callback, ...]":
        from drivetrain.train.together.outer import Apart, Outer

        if not isinstance(step.exchange, Apart):
            return ()
        compressor = None if self.compression is None else self.compression.compressor()
        outer = Outer(
            step,
            group,
            every=self.every,
            lr=self.outer_lr,
            momentum=self.outer_momentum,
            compressor=compressor,
        )
        step.exchange.outer = outer
        return (outer,)
