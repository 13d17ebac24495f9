"""The strategy of several processes that hold some of a model's modules each, one after another."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from drivetrain.core.claim import Claim
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.metric import Note, silent
from drivetrain.core.seams import Examples, Run
from drivetrain.train.several import Several
from drivetrain.train.stages.order import ORDERS, PipelineOrder

if TYPE_CHECKING:
    from torch import nn

    from drivetrain.train.checkpoints.checkpoint import Storage
    from drivetrain.train.loop.ending import Ending
    from drivetrain.train.loop.step import Exchange, Step
    from drivetrain.train.stages.division import Division
    from drivetrain.train.stages.stage import Whole
    from drivetrain.train.together.group import Group

_TRIED_ROWS = 4
"""On so many rows the stages are weighed, and held against the model."""


@dataclass(frozen=True, kw_only=True)
class Pipelined(Several):
    """Trains models whose layers fill more than one process: each process holds some of them.

    A model is cut into stages, each in a process of its own with its gradients, what the optimizer
    remembers and the average. A batch goes through them in micro-batches, so that all stages have
    something to do at a time. Updates are those of ``Single``, to rounding. With more processes
    than stages there are several copies of the model, which share the rows of each batch.

    What is cut is what the model does to its inputs, as torch.fx sees it: any module that takes
    values from modules before it and gives them to those behind, in a row or past one another. A
    module whose ``forward`` depends on values is not looked into.

    Batch normalisation normalises by the rows of a micro-batch, and follows the mean of these; so
    that with micro-batches, as with several processes, its updates are not those of ``Single``.

    Each process builds the whole model once before it keeps its stage, and has whole weights again
    at the end. ``fit`` returns the model that it was given.

    Source: Huang et al., GPipe, NeurIPS 2019; Narayanan et al., PipeDream, SOSP 2019.

    Attributes:
        stages: processes to a copy of the model. The site's processes are a multiple of it; a
            process by itself trains as ``Single`` does.
        micro_batches: to a batch of a copy. Each stage stands idle for
            ``(stages - 1) / (micro_batches + stages - 1)`` of the time.
        order: ``1f1b`` holds the activations of at most ``stages`` micro-batches at a time,
            ``gpipe`` those of all; they are equally fast.
        cut: names of the modules at which stages begin, from the second stage on; none for where
            multiplications and weights are divided most equally.
        bucket_mb: megabytes of gradients that copies send to one another at once.
    """

    can_be_private: ClassVar[bool] = False

    stages: int = field(default=2, metadata={"declared": False})
    micro_batches: int = 4
    order: PipelineOrder = field(default="1f1b", metadata={"declared": False})
    cut: tuple[str, ...] = field(default=(), metadata={"declared": False})
    bucket_mb: float = field(default=25.0, metadata={"declared": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stages < 2:
            raise wrong("Pipelined.stages", self.stages, "an integer of at least 2")
        if self.micro_batches < 1:
            raise wrong("Pipelined.micro_batches", self.micro_batches, "an integer of at least 1")
        if self.order not in ORDERS:
            raise unknown("Pipelined.order", self.order, ORDERS)
        if self.cut and len(self.cut) != self.stages - 1:
            allowed = f"{self.stages - 1}, for {self.stages} stages, or none"
            raise wrong("names in Pipelined.cut", len(self.cut), allowed)
        if not self.bucket_mb > 0:
            raise wrong("Pipelined.bucket_mb", self.bucket_mb, "a number above 0")
        if self.compile:
            raise wrong("Pipelined.compile", self.compile, "False")

    @contextmanager
    def _together(self, source: Examples, run: Run) -> "Generator[Group]":
        from drivetrain.train.together.group import noticing
        from drivetrain.train.together.mesh import Mesh, check_ways

        check_ways("Pipelined.stages", self.stages, run.world.size)
        with super()._together(source, run) as group:
            if group.size == 1:
                yield group
                return
            mesh = Mesh(run.world, self.stages, self.wait_seconds, alike=False)
            with noticing(mesh):
                yield mesh

    def _train(
        self, model: "nn.Module", source: Examples, run: Run, group: "Group", ending: "Ending"
    ) -> "nn.Module":
        from drivetrain.train.stages.stage import let_go, put_back
        from drivetrain.train.together.buckets import start_equal

        if group.size == 1:
            return super()._train(model, source, run, group, ending)
        whole = self._whole(model)
        start_equal(model, group)
        division = self._division(model, source, run)
        if group.rank == 0:
            for note in self._notes(division):
                run.emit(note)
        stage = division.stage(group.rank % self.stages, whole)
        let_go(model, stage)
        # What the optimizer remembers is let go before the weights are put together.
        super()._train(stage, source, run, group, ending)
        put_back(model, whole, division.stages, group)
        return model

    def _division(self, model: "nn.Module", source: Examples, run: Run) -> "Division":
        from drivetrain.train.loop.feed import Feed
        from drivetrain.train.stages.division import divide

        batch = next(iter(source.batches("train", size=_TRIED_ROWS)), None)
        if batch is None or not len(batch):
            raise ValueError("split 'train': found 0 rows, allowed: at least 1.")
        inputs, _ = Feed(source, run.device)(batch)
        return divide(model, inputs, self.stages, self.cut)

    def _notes(self, division: "Division") -> list[Note]:
        """Where the model was cut, and what is other than in one process."""
        from torch.nn.modules.batchnorm import _BatchNorm

        begins = ", ".join(map(repr, division.begins))
        notes = [Note(stage="train", text=f"cut into {self.stages} stages, at {begins}")]
        norms = [n for n, m in division.model.named_modules() if isinstance(m, _BatchNorm)]
        if norms and self.micro_batches > 1:
            text = (
                f"{norms[0].removeprefix('module.')!r} normalises by the rows of a micro-batch, "
                f"of which there are {self.micro_batches} to a batch"
            )
            notes.append(Note(stage="train", text=text, warning=True))
        return notes

    def _whole(self, model: "nn.Module") -> "Whole":
        from drivetrain.train.stages.stage import Whole

        return Whole.of(model, self.weight_decay, self.embedding_decay)

    def _shapes(self, model: "nn.Module") -> list[tuple[str, list[int]]]:
        from drivetrain.train.stages.stage import Stage

        return model.whole.shapes if isinstance(model, Stage) else super()._shapes(model)

    def _checkpoints(
        self, model: "nn.Module", run: Run, fingerprint: str, group: "Group"
    ) -> "Storage":
        from drivetrain.train.stages.checkpoint import StageCheckpoints
        from drivetrain.train.stages.stage import Stage
        from drivetrain.train.together.group import beside

        part = self._whole(model)
        claim = Claim.of(run.directory, run.world)
        if group.rank == 0:
            claim.take()
        return StageCheckpoints(
            run.directory,
            fingerprint,
            run.emit if group.rank == 0 else silent,
            beside(group, self.wait_seconds),
            whole=model.whole if isinstance(model, Stage) else part,
            part=part,
            writes=group.shard.index == 0,
            claim=claim,
        )

    def _exchange(self, model: "nn.Module", group: "Group") -> "Exchange | None":
        from drivetrain.train.stages.link import Link
        from drivetrain.train.stages.pipeline import Pipeline
        from drivetrain.train.stages.stage import Stage
        from drivetrain.train.together.mesh import Mesh

        if group.size == 1:
            return None
        assert isinstance(model, Stage)
        assert isinstance(group, Mesh)
        device = next(model.parameters()).device
        return Pipeline(
            model,
            group,
            Link(group, device, self.wait_seconds),
            order=self.order,
            micro_batches=self.micro_batches,
            bucket_bytes=int(self.bucket_mb * (1 << 20)),
        )

    def _kind_of_step(self, group: "Group") -> "type[Step]":
        from drivetrain.train.stages.pipeline import PipelinedStep

        return super()._kind_of_step(group) if group.size == 1 else PipelinedStep
