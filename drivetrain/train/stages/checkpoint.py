"""Checkpoints of a model in stages, written so that any number of stages reads them again."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from drivetrain.core.claim import Claim
from drivetrain.core.metric import Emit, silent
from drivetrain.train.checkpoints.checkpoint import Checkpoint
from drivetrain.train.checkpoints.sharded import ShardedCheckpoints
from drivetrain.train.stages.stage import Whole
from drivetrain.train.together.group import Group

_NUMBERED = re.compile(r"(optimizer|average)/(\d+)(.*)", re.DOTALL)
_OF_ALL = ("exchange/", "generator/")
"""What each process has of each: the leader writes it."""


class StageCheckpoints(ShardedCheckpoints):
    """Checkpoints in parts, each with the weights of a stage and what belongs to them.

    In memory parameters are counted within a stage, on disk within the whole model. A checkpoint
    of three stages is thus one of two, or of a process by itself. Of the copies of a stage the
    first one writes.

    Args:
        directory: this training's own.
        fingerprint: names the training.
        emit: where it is said that a checkpoint was not used.
        group: the processes, over a channel of its own.
        whole: of all of the model.
        part: of this process, in the order in which an optimizer counts its parameters.
        writes: whether this is the first copy.
        claim: this generation's right to write.
    """

    def __init__(
        self,
        directory: Path,
        fingerprint: str,
        emit: Emit = silent,
        group: Group | None = None,
        *,
        whole: Whole,
        part: Whole,
        writes: bool,
        claim: Claim | None = None,
    ) -> None:
        super().__init__(directory, fingerprint, emit, group, claim=claim)
        self._writes = writes
        self._held = {name for name, _ in part.shapes}
        of_all = {"optimizer": whole.optimized, "average": whole.trained}
        mine = {"optimizer": part.optimized, "average": part.trained}
        self._outside = {
            kind: [of_all[kind].index(name) for name in names] for kind, names in mine.items()
        }

    def part(self, checkpoint: Checkpoint) -> Checkpoint:
        """The weights of the stage and what belongs to them, counted as in the whole model."""
        assert not any(checkpoint.state.get("optimizer", {}).values()), "tensors hold all of it"
        tensors = {self._renamed(name): t for name, t in checkpoint.tensors.items()}
        return super().part(Checkpoint(checkpoint.state, tensors))

    def _mine(self, name: str, tensor: Tensor) -> bool:
        return self.group.rank == 0 if name.startswith(_OF_ALL) else self._writes

    def _renamed(self, name: str) -> str:
        if match := _NUMBERED.fullmatch(name):
            kind, number, rest = match.groups()
            return f"{kind}/{self._outside[kind][int(number)]}{rest}"
        return name

    def latest(self) -> tuple[Checkpoint, bool] | None:
        """The newest whole checkpoint, with what this process needs of it."""
        found = super().latest()
        if found is None:
            return None
        checkpoint, final = found
        inside = {
            kind: {number: at for at, number in enumerate(numbers)}
            for kind, numbers in self._outside.items()
        }
        tensors: dict[str, Any] = {}
        slots: dict[str, Mapping[str, Any]] = {}
        for name, tensor in checkpoint.tensors.items():
            if match := _NUMBERED.fullmatch(name):
                kind, number, rest = match.groups()
                if int(number) not in inside[kind]:
                    continue
                at = inside[kind][int(number)]
                if kind == "optimizer":
                    slots[str(at)] = {}
                tensors[f"{kind}/{at}{rest}"] = tensor
            elif not name.startswith("callback/validate/") or self._has(name):
                tensors[name] = tensor
        state = {**checkpoint.state, "optimizer": slots}
        return Checkpoint(state, tensors), final

    def _has(self, name: str) -> bool:
        return name.removeprefix("callback/validate/") in self._held
