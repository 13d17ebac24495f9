"""The strategy of several processes that hold a piece of each weight, gradient and state."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from drivetrain.core.claim import Claim
from drivetrain.core.errors import wrong
from drivetrain.core.metric import silent
from drivetrain.core.seams import Examples, Run
from drivetrain.train.several import Several

if TYPE_CHECKING:
    from torch import nn

    from drivetrain.train.checkpoints.checkpoint import Storage
    from drivetrain.train.loop.ending import Ending
    from drivetrain.train.loop.step import Exchange, Step
    from drivetrain.train.privacy.protection import Protection
    from drivetrain.train.together.group import Group


@dataclass(frozen=True, kw_only=True)
class Sharded(Several):
    """Trains models whose weights, gradients and optimizer states fill more than one process.

    Each weight is cut along its first dimension, an embedding table by its rows, and every process
    holds one piece of it, of its gradient, of what the optimizer remembers and of the average: a
    process's share is one part in as many as there are. A module's weights are put together when
    it is called and let go after. Updates are those of ``AllReduce``.

    Each process builds the whole model once before it keeps its pieces. ``fit`` returns another
    module than it was given, with the whole weights, in every process.

    With privacy each row's gradient is cut over all weights: these are put together for each
    update, in which the whole gradient is made; in between a process holds its pieces.

    Source: Zhao et al., PyTorch FSDP, VLDB 2023; its second form, ``fully_shard``.

    Attributes:
        at_least: parameters from which on a module is fetched by itself; those of a smaller one
            come with the module that it is in. Small ones save memory and cost messages.
    """

    can_be_private: ClassVar[bool] = True

    at_least: int = 100_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.at_least < 1:
            raise wrong("Sharded.at_least", self.at_least, "an integer of at least 1")
        if self.compile:
            raise wrong("Sharded.compile", self.compile, "False")

    @contextmanager
    def _together(self, source: Examples, run: Run) -> "Generator[Group]":
        from drivetrain.train.together.group import noticing
        from drivetrain.train.together.sharding import explaining

        with super()._together(source, run) as group, explaining("Sharded"), noticing(group):
            yield group

    def _train(
        self, model: "nn.Module", source: Examples, run: Run, group: "Group", ending: "Ending"
    ) -> "nn.Module":
        from drivetrain.train.together.sharding import skeleton, whole

        if group.size == 1:
            return super()._train(model, source, run, group, ending)
        like = skeleton(model)
        # What the optimizer remembers is let go before the weights are put together.
        return whole(super()._train(model, source, run, group, ending), like, group)

    def _step(
        self,
        model: "nn.Module",
        device: str,
        rows: int | None,
        group: "Group",
        protection: "Protection | None" = None,
    ) -> "Step":
        from drivetrain.train.together.sharding import shard

        if group.size > 1:
            if protection is not None:
                from drivetrain.train.privacy.pieces_step import PrivateStepOfPieces, emptied

                kind = partial(PrivateStepOfPieces, learner=emptied(model))
                protection = replace(protection, kind=kind)
            shard(model, group, self.at_least)
        return super()._step(model, device, rows, group, protection)

    def _checkpoints(
        self, model: "nn.Module", run: Run, fingerprint: str, group: "Group"
    ) -> "Storage":
        from drivetrain.train.checkpoints.sharded import ShardedCheckpoints
        from drivetrain.train.together.group import beside

        emit = run.emit if group.rank == 0 else silent
        channel = beside(group, self.wait_seconds)
        claim = Claim.of(run.directory, run.world)
        if group.rank == 0:
            claim.take()
        return ShardedCheckpoints(run.directory, fingerprint, emit, channel, claim=claim)

    def _exchange(self, model: "nn.Module", group: "Group") -> "Exchange | None":
        from drivetrain.train.together.sharding import Shards

        return None if group.size == 1 else Shards(model, group)

    def _kind_of_step(self, group: "Group") -> "type[Step]":
        from drivetrain.train.together.sharding import JointStep

        return super()._kind_of_step(group) if group.size == 1 else JointStep
