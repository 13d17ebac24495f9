"""What strategies for models of other frameworks have in common: the one loop around their step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from drivetrain.core.describe import digest
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.seams import Examples, Run
from drivetrain.train.loss import Loss
from drivetrain.train.schedule import Constant, Schedule
from drivetrain.train.stopping import EarlyStopping

if TYPE_CHECKING:
    from drivetrain.core.graph import Graph
    from drivetrain.train.foreign.model import Foreign, ForeignKeep
    from drivetrain.train.loop.ending import Ending
    from drivetrain.train.loop.loop import Loop
    from drivetrain.train.loop.validate import Validate

OPTIMIZERS = ("adamw", "adam", "sgd", "adagrad")
_NOT_DECLARED: Mapping[str, Any] = {"declared": False}


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """The loop, validation and checkpoints of :class:`Single` around another framework's step.

    Attributes:
        loss: one of this package's losses, which the framework then computes by its own; or a
            callable of the framework: of the model's outputs and the targets by name, each an
            array of the framework, to a scalar. An output ``[rows, 1]`` comes as ``[rows]``.
        epochs: passes over the training rows.
        batch_size: rows a batch.
        optimizer: ``adamw``, ``adam``, ``sgd`` or ``adagrad`` as the framework has it, or a
            callable of the parameter ``learning_rate`` that makes one.
        lr: the learning rate.
        schedule: changes the learning rate from step to step.
        validate_every: updates between two validations; None validates after each epoch.
        early_stopping: None trains all epochs and keeps the last weights.
        seed: of the order of the rows, of the initial weights and of dropout.
        checkpoint_seconds: between two checkpoints; None goes by steps only.
        checkpoint_steps: updates between two checkpoints; None goes by the clock only.
    """

    loss: Loss | Callable[[Any, Mapping[str, Any]], Any]
    epochs: int = 1
    batch_size: int = 1024
    optimizer: str | Callable[..., Any] = "adamw"
    lr: float = 1e-3
    schedule: Schedule = Constant()
    validate_every: int | None = None
    early_stopping: EarlyStopping | None = None
    seed: int = 0
    checkpoint_seconds: float | None = field(default=30.0, metadata=_NOT_DECLARED)
    checkpoint_steps: int | None = field(default=None, metadata=_NOT_DECLARED)

    def __post_init__(self) -> None:
        where = type(self).__name__
        if not callable(self.loss):
            raise wrong(f"{where}.loss", self.loss, "a callable of outputs and targets")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise wrong(f"{where}.{name}", value, "an integer of at least 1")
        if isinstance(self.optimizer, str) and self.optimizer not in OPTIMIZERS:
            raise unknown(f"{where}.optimizer", self.optimizer, OPTIMIZERS)
        if not self.lr > 0:
            raise wrong(f"{where}.lr", self.lr, "a number above 0")
        for name in ("validate_every", "checkpoint_seconds", "checkpoint_steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise wrong(f"{where}.{name}", value, "a number above 0, or None")

    @property
    def framework(self) -> str:
        """Its name in errors."""
        return type(self).__name__

    def foreign(self, model: Any) -> "Foreign":
        """What ``build`` made, with an optimizer."""
        raise wrong("strategy", type(self).__name__, "Keras or Flax")

    def fit(self, model: Any, source: Examples, run: Run) -> "Graph":
        """Train what ``build`` made; what was begun in ``run.directory`` goes on from there.

        Args:
            model: of ``build``.
            source: examples.
            run: a directory and listeners. The framework chooses its device by itself.

        Returns:
            From ``source.features.tensors`` to predictions, held against the framework's own
            answers.

        Raises:
            ArithmeticError: the loss or a weight is no longer a number.
            InterruptedError: SIGTERM came; a checkpoint was written first.
            OSError: a checkpoint can't be written.
            ValueError: no training rows, a missing target, or a model that no converter gets
                right.
        """
        from drivetrain.train.foreign.graph import served
        from drivetrain.train.foreign.model import ForeignModule
        from drivetrain.train.loop.ending import heeding

        if run.world.size > 1:
            allowed = "1; of several devices a framework's own distribution makes use"
            raise wrong(f"processes of {type(self).__name__}", run.world.size, allowed)
        foreign = self.foreign(model)
        with heeding() as ending:
            loop, keep, validate = self._assemble(foreign, source, run, ending)
            with keep.checkpoints:
                if not keep.resume(loop):
                    loop.run()
                    if validate.weights:
                        foreign.load({n: t.numpy() for n, t in validate.weights.items()})
                    keep.finish(loop)
        predictions = getattr(self.loss, "predictions", None)
        return served(ForeignModule(foreign), source.features, predictions, self.framework)

    def _assemble(
        self, foreign: "Foreign", source: Examples, run: Run, ending: "Ending"
    ) -> "tuple[Loop, ForeignKeep, Validate]":
        import torch

        from drivetrain.core.claim import Claim
        from drivetrain.train.checkpoints.behind import Behind
        from drivetrain.train.checkpoints.checkpoint import Checkpoints
        from drivetrain.train.foreign.model import ForeignKeep, ForeignStep
        from drivetrain.train.foreign.outputs import mapped
        from drivetrain.train.loop.feed import Feed
        from drivetrain.train.loop.loop import Loop
        from drivetrain.train.loop.report import Report
        from drivetrain.train.loop.validate import Validate

        rows = source.rows("train")
        total = None if rows is None else -(-rows // self.batch_size) * self.epochs

        def measured(outputs: Any, targets: Mapping[str, Any]) -> Mapping[str, Any]:
            arrays = {name: target.numpy() for name, target in targets.items()}
            value = foreign.measure(mapped(outputs, lambda tensor: tensor.numpy()), arrays)
            return {"loss": torch.tensor(value)}

        scores = getattr(self.loss, "scores", None) or measured
        validate = Validate(scores, self.early_stopping, every=self.validate_every)
        shapes = [(name, list(array.shape)) for name, array in foreign.weights().items()]
        fingerprint = digest(self, shapes, rows, source.rows("validate"))
        claim = Claim.of(run.directory, run.world)
        claim.take()
        keep = ForeignKeep(
            Behind(Checkpoints(run.directory, fingerprint, run.emit, claim=claim)),
            {"validate": validate},
            seconds=self.checkpoint_seconds,
            steps=self.checkpoint_steps,
            ending=ending,
        )
        report = Report(None if rows is None else rows * self.epochs)
        loop = Loop(
            ForeignStep(foreign, lambda step: self.lr * self.schedule.factor(step, total)),
            source,
            Feed(source, "cpu", getattr(self.loss, "check", None)),
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
            emit=run.emit,
            callbacks=(report, validate, keep),
        )
        return loop, keep, validate
