"""The strategy of several processes that hold each copy of a model together, its layers cut."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from drivetrain.core.claim import Claim
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.metric import Metric, Note, silent
from drivetrain.core.seams import Examples, Run
from drivetrain.train.several import Several

if TYPE_CHECKING:
    from torch import nn

    from drivetrain.train.checkpoints.checkpoint import Storage
    from drivetrain.train.loop.ending import Ending
    from drivetrain.train.loop.step import Exchange, Step
    from drivetrain.train.together.group import Group

STYLES = ("column", "row", "gathered", "whole")
_LAYOUT: Mapping[str, Any] = {"declared": False}
"""Where weights lie changes what is trained by rounding only, as the number of processes does."""


@dataclass(frozen=True, kw_only=True)
class TensorParallel(Several):
    """Trains models whose layers are cut: ``ways`` processes compute each product together.

    Of the site's processes, ``ways`` in a row hold one copy of the model: each a part of every
    large layer, of its gradient, of what the optimizer remembers of it and of its average. Copies
    share each batch, and the processes of one copy take the same rows. So a process's memory, and
    its work, is one part in as many as there are ways, and messages travel within each layer: put
    those of one copy on one machine. Updates are those of ``Single``.

    Which layers are cut, and how, is found from how numbers flow between them. Two linear layers
    with an activation, a gate or the heads of an attention between them are cut by outputs and by
    inputs; others by outputs, which are put together; tables of embeddings by the numbers of each
    vector, or by rows. What can't be cut is whole in each process of a copy. Before the first
    update the cut model is held against the whole one, its gradients included.

    A process by itself trains the whole model. A training goes on from a checkpoint with any
    number of processes, and with other ways.

    Source: Shoeybi et al., Megatron-LM, 2019, https://arxiv.org/abs/1909.08053

    Attributes:
        ways: processes that hold a copy; their number is a multiple of it, or 1.
        plan: styles by patterns of layers' names, such as ``{"*.head": "whole"}``; the first that
            fits wins over what is found. ``column`` cuts by outputs and leaves them in parts,
            ``row`` takes such parts, ``gathered`` cuts by outputs and puts them together,
            ``whole`` leaves a layer as it is; or a style of ``torch.distributed.tensor.parallel``.
        at_least: parameters of a layer, or of two that go together, from which on it is cut.
        shard: whether copies share out what each process holds of one, as ``Sharded`` does, so
            that all processes together hold one model: less memory for more messages. Without it
            each copy is whole, and gradients are summed.
        bucket_mb: megabytes of gradients that are sent to other copies at once.
    """

    ways: int = field(default=2, metadata=_LAYOUT)
    plan: Mapping[str, Any] = field(default_factory=dict[str, Any], metadata=_LAYOUT)
    at_least: int = field(default=10_000, metadata=_LAYOUT)
    shard: bool = field(default=False, metadata=_LAYOUT)
    bucket_mb: float = field(default=25.0, metadata=_LAYOUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ways", "at_least"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise wrong(f"TensorParallel.{name}", value, "an integer of at least 1")
        if not self.bucket_mb > 0:
            raise wrong("TensorParallel.bucket_mb", self.bucket_mb, "a number above 0")
        if self.compile:
            raise wrong("TensorParallel.compile", self.compile, "False")
        for pattern, style in self.plan.items():
            if isinstance(style, str) and style not in STYLES:
                raise unknown("style", style, STYLES, f"TensorParallel.plan[{pattern!r}]")

    @contextmanager
    def _together(self, source: Examples, run: Run) -> "Generator[Group]":
        from drivetrain.train.tensor.cut import explaining
        from drivetrain.train.together.group import noticing
        from drivetrain.train.together.mesh import Mesh, check_ways

        check_ways("TensorParallel.ways", self.ways, run.world.size)
        with super()._together(source, run) as group, explaining(), noticing(group):
            if group.size == 1:
                yield group
            else:
                yield Mesh(run.world, self.ways, self.wait_seconds)

    def _train(
        self, model: "nn.Module", source: Examples, run: Run, group: "Group", ending: "Ending"
    ) -> "nn.Module":
        from drivetrain.train.tensor.attention import opened
        from drivetrain.train.tensor.cut import restored
        from drivetrain.train.together.sharding import skeleton

        like = skeleton(model)
        model = opened(model)
        if group.size > 1:
            self._cut(model, source, run, group)
        # What the optimizer remembers is let go before the weights are put together.
        return restored(super()._train(model, source, run, group, ending), like, group)

    def _cut(self, model: "nn.Module", source: Examples, run: Run, group: "Group") -> None:
        """Cut the model's layers, in place, and say what came of it."""
        from drivetrain.train.loop.feed import Feed
        from drivetrain.train.tensor import cut as tensor_cut
        from drivetrain.train.tensor import trial as tensor_trial
        from drivetrain.train.tensor.plan import SAMPLE, planned
        from drivetrain.train.together.buckets import start_equal
        from drivetrain.train.together.mesh import DATA, MODEL, Mesh
        from drivetrain.train.together.sharding import shard_over

        assert isinstance(group, Mesh)
        start_equal(model, group)
        rows = next(iter(source.batches("train", size=SAMPLE)), None)
        if rows is None or not len(rows):
            raise ValueError("split 'train': found 0 rows, allowed: at least 1.")
        sample, _ = Feed(source, run.device)(rows)
        model.eval()
        plan = planned(model, sample, self.ways, self.at_least, self.plan)
        whole = tensor_trial.tried(model, sample, group.model)
        devices = group.devices(run.device)
        tensor_cut.cut(model, plan, group, devices[MODEL])
        found = tensor_trial.tried(model, sample, group.model)
        tensor_trial.hold(found, whole, group)
        tensor_cut.cut_dropouts(model, found, whole, group)
        model.train()
        share = tensor_cut.share_cut(model)
        if self._shards(group):
            shard_over(model, devices[DATA], self.at_least)
        if group.rank == 0:
            text = f"{share:.1%} of the parameters are cut {self.ways} ways, the rest is whole"
            run.emit(Note(stage="train", text=text, warning=not share))
            run.emit(Metric(name="train/share_cut", value=share, repeatable=False))

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

    def _shards(self, group: "Group") -> bool:
        """Whether there are copies that share out what they hold."""
        return self.shard and group.shard.count > 1

    def _exchange(self, model: "nn.Module", group: "Group") -> "Exchange | None":
        from drivetrain.train.tensor.cut import Parts, ShardedParts
        from drivetrain.train.together.mesh import Mesh

        if not isinstance(group, Mesh):
            return None
        if self._shards(group):
            return ShardedParts(model, group)
        return Parts(model, group, int(self.bucket_mb * (1 << 20)))

    def _kind_of_step(self, group: "Group") -> "type[Step]":
        from drivetrain.train.tensor.cut import CutStep
        from drivetrain.train.together.sharding import JointStep

        if group.size == 1:
            return super()._kind_of_step(group)
        return JointStep if self._shards(group) else CutStep
