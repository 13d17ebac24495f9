"""The strategy of one process on one device."""

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from drivetrain.core.claim import Claim
from drivetrain.core.describe import digest
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.metric import Emit, silent
from drivetrain.core.seams import Examples, Reduced, Run
from drivetrain.train.loss import Loss
from drivetrain.train.private import Private
from drivetrain.train.prune import Prune
from drivetrain.train.quantization_aware import QuantizationAware
from drivetrain.train.row_wise import RowWise
from drivetrain.train.schedule import Constant, Schedule
from drivetrain.train.stopping import EarlyStopping

if TYPE_CHECKING:
    from torch import nn

    from drivetrain.train.checkpoints.checkpoint import Storage
    from drivetrain.train.checkpoints.resume import Keep
    from drivetrain.train.loop.ending import Ending
    from drivetrain.train.loop.loop import Callback, Loop
    from drivetrain.train.loop.step import Exchange, Step
    from drivetrain.train.loop.validate import Validate
    from drivetrain.train.privacy.protection import Protection
    from drivetrain.train.together.group import Group

OPTIMIZERS = ("adamw", "adam", "sgd", "adagrad")
PRECISIONS = ("float32", "bfloat16")
_NOT_DECLARED: Mapping[str, Any] = {"declared": False}
"""How often to save changes nothing of what is trained, and so not the system's digest."""


@dataclass(frozen=True, kw_only=True)
class Single:
    """Trains in this process. The same declaration, data and machine give the same bits.

    Attributes:
        loss: called with the model's outputs and the targets; a loss of this package also says
            what is served.
        epochs: passes over the training rows.
        batch_size: rows a batch.
        optimizer: ``adamw``, ``adam``, ``sgd`` or ``adagrad``, fused where the device can.
        lr: the learning rate.
        weight_decay: of weights; biases, norms and adapters have none.
        embedding_decay: of embedding tables.
        momentum: of ``sgd``.
        betas: of ``adam`` and ``adamw``.
        schedule: changes the learning rate from step to step.
        clip_norm: the largest norm of all gradients together; None for any.
        precision: ``bfloat16`` multiplies in bfloat16; weights and losses stay float32.
        compile: run the model through ``torch.compile``.
        accumulate: batches to an update.
        validate_every: updates between two validations; None validates after each epoch.
        early_stopping: None trains all epochs and keeps the last weights.
        average: the decay of an exponential moving average of the weights, which is then what
            is validated and served; None keeps the weights themselves.
        rows: trains large embedding tables by the rows that a batch takes; None trains them as all
            other weights.
        privacy: hides each training row behind noise, for an ε that is stated; None for none.
        prune: takes channels out of the trained model, which is then trained further; None
            leaves it as it is.
        quantize: trains the trained (and pruned) model on with its products in eight bits, and
            serves those; None leaves it in float32.
        seed: of the order of the rows and of dropout.
        deterministic: choose kernels that repeat to the bit.
        checkpoint_seconds: between two checkpoints; None goes by steps only.
        checkpoint_steps: updates between two checkpoints; None goes by the clock only.
    """

    can_be_private: ClassVar[bool] = True
    """That ε holds for how it trains; a class that inherits from this one says so for itself."""
    can_take_rows: ClassVar[bool] = True
    """That ``rows`` are trained so; a class that inherits from this one says so for itself."""

    loss: Loss | Callable[[Any, Mapping[str, Any]], Any]
    epochs: int = 1
    batch_size: int = 1024
    optimizer: Literal["adamw", "adam", "sgd", "adagrad"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    embedding_decay: float = 0.0
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Schedule = Constant()
    clip_norm: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    accumulate: int = 1
    validate_every: int | None = None
    early_stopping: EarlyStopping | None = None
    average: float | None = None
    rows: RowWise | None = None
    privacy: Private | None = None
    prune: Prune | None = None
    quantize: QuantizationAware | None = None
    seed: int = 0
    deterministic: bool = True
    checkpoint_seconds: float | None = field(default=30.0, metadata=_NOT_DECLARED)
    checkpoint_steps: int | None = field(default=None, metadata=_NOT_DECLARED)

    def __post_init__(self) -> None:
        where = type(self).__name__
        if not callable(self.loss):
            raise wrong(f"{where}.loss", self.loss, "a callable of outputs and targets")
        for name in ("epochs", "batch_size", "accumulate"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise wrong(f"{where}.{name}", value, "an integer of at least 1")
        if self.optimizer not in OPTIMIZERS:
            raise unknown(f"{where}.optimizer", self.optimizer, OPTIMIZERS)
        if self.precision not in PRECISIONS:
            raise unknown(f"{where}.precision", self.precision, PRECISIONS)
        if not self.lr > 0:
            raise wrong(f"{where}.lr", self.lr, "a number above 0")
        for name in ("weight_decay", "embedding_decay", "momentum"):
            if not getattr(self, name) >= 0:
                raise wrong(f"{where}.{name}", getattr(self, name), "a number of 0 or more")
        if self.average is not None and not 0 < self.average < 1:
            raise wrong(f"{where}.average", self.average, "a decay above 0 and below 1, or None")
        for name in ("clip_norm", "validate_every", "checkpoint_seconds", "checkpoint_steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise wrong(f"{where}.{name}", value, "a number above 0, or None")
        if self.rows is not None:
            self.rows.check(self)
        if self.privacy is not None:
            self.privacy.check(self)
        for name in ("prune", "quantize"):
            value = getattr(self, name)
            if value is None:
                continue
            # A class that trains in another way may hold the weights in parts.
            own = ("fit", "_train", "_fitted")
            if any(getattr(type(self), each) is not getattr(Single, each) for each in own):
                raise wrong(f"{where}.{name}", value, f"None; Single, AllReduce and DiLoCo {name}")
            if self.privacy is not None:
                raise wrong(f"{where}.{name}", value, "None: more epochs would spend more ε")
        if self.quantize is not None and self.compile:
            allowed = "None: layers in eight bits go through no compiler"
            raise wrong(f"{where}.quantize", self.quantize, allowed)

    def fit(self, model: "nn.Module", source: Examples, run: Run) -> "nn.Module | Reduced":
        """Train ``model`` in place; what was begun in ``run.directory`` goes on from there.

        Args:
            model: takes one tensor for each of ``source.features.tensors``, in order.
            source: examples.
            run: a directory, listeners and a device.

        Returns:
            The model with its final weights, in evaluation mode: the average or the best ones
            where they were asked for. With ``prune`` or ``quantize`` the smaller one, and this
            one beside it.

        Raises:
            ArithmeticError: the loss or a weight is no longer a number.
            InterruptedError: SIGTERM came; a checkpoint was written first.
            OSError: a checkpoint can't be written.
            ValueError: no training rows, a missing target, or an option that the device can't.
        """
        from drivetrain.train.loop.ending import heeding

        with (
            heeding() as ending,
            self._together(source, run) as group,
            self._repeatable(run, group),
        ):
            model = model.to(run.device).train()
            for parameter in model.parameters():  # kernels and messages take them as they lie
                parameter.data = parameter.data.contiguous()
            model = self._train(model, source, run, group, ending)
            return self._smaller(model.eval(), source, run, group, ending)

    def predictions(self, outputs: Any) -> Mapping[str, Any]:
        """Named predictions; those of the loss, or the outputs under their own names."""
        from drivetrain.train.predictions import named

        predictions = getattr(self.loss, "predictions", None)
        return named(outputs) if predictions is None else predictions(outputs)

    @contextmanager
    def _together(self, source: Examples, run: Run) -> "Generator[Group]":
        """Meet the processes that train with this one."""
        from drivetrain.train.together.group import Alone

        if run.world.size > 1:
            raise wrong(
                f"processes of {type(self).__name__}", run.world.size, "1; AllReduce takes several"
            )
        yield Alone()

    def _train(
        self, model: "nn.Module", source: Examples, run: Run, group: "Group", ending: "Ending"
    ) -> "nn.Module":
        """Train from the last checkpoint, or the beginning, to the end."""
        with self._by_rows(model):
            loop, keep, validate = self._assemble(model, source, run, group, ending)
            with keep.checkpoints:
                if not keep.resume(loop):
                    loop.run()
                    self._final_weights(loop.step, validate)
                    keep.finish(loop)
                return self._fitted(model, run, group)

    @contextmanager
    def _by_rows(self, model: "nn.Module") -> "Generator[None]":
        """Let the model's large tables keep what is taken of them, where rows are trained so."""
        if self.rows is None:
            yield
            return
        from drivetrain.train.rows.touched import in_place, touched

        with in_place(model, touched(model, self.rows.at_least)):
            yield

    def _smaller(
        self, model: "nn.Module", source: Examples, run: Run, group: "Group", ending: "Ending"
    ) -> "nn.Module | Reduced":
        """The trained model, or what pruning and eight bits make of it, trained further."""
        smaller, names = model, list[str]()
        # All processes have equal weights, and so change their models in the same way.
        if self.prune is not None:
            emit = run.emit if group.rank == 0 else silent
            smaller = self.prune(model, source.features.tensors, emit)
            lr = self.prune.lr or self.lr
            further = replace(self, prune=None, quantize=None, epochs=self.prune.epochs, lr=lr)
            smaller = further._again("prune", smaller, source, run, group, ending)
            names.append("prune")
        if self.quantize is not None:
            smaller = self.quantize.rounding(smaller)
            lr = self.quantize.lr or self.lr / 10
            further = replace(self, prune=None, quantize=None, epochs=self.quantize.epochs, lr=lr)
            smaller = further._again("quantize", smaller, source, run, group, ending)
            smaller = self.quantize.rounded(smaller)
            names.append("quantize")
        return Reduced(smaller, model, "-".join(names)) if names else model

    def _again(
        self,
        name: str,
        model: "nn.Module",
        source: Examples,
        run: Run,
        group: "Group",
        ending: "Ending",
    ) -> "nn.Module":
        """Train a changed model: a training of its own, with checkpoints and metrics of its own."""
        from drivetrain.train.prune import under

        lent = replace(run, directory=run.directory / name, emit=under(name, run.emit))
        # Generators begin anew, whether the training before went on to its end or was read.
        with self._repeatable(run, group):
            return self._train(model.train(), source, lent, group, ending).eval()

    def _repeatable(self, run: Run, group: "Group") -> "AbstractContextManager[None]":
        """Generators and kernels of this process."""
        from drivetrain.train.loop.repeatable import repeatable

        return repeatable(
            self.seed + group.stream,
            run.device,
            deterministic=self.deterministic,
            compiles=self.compile,
        )

    def _exchange(self, model: "nn.Module", group: "Group") -> "Exchange | None":
        """What sums gradients over them."""
        return None

    def _kind_of_step(self, group: "Group") -> "type[Step]":
        """What takes a batch."""
        from drivetrain.train.loop.step import Step

        return Step

    def _shapes(self, model: "nn.Module") -> list[tuple[str, list[int]]]:
        """The names and shapes of all weights, which tell one training from another."""
        return [(name, list(t.shape)) for name, t in model.state_dict().items()]

    def _checkpoints(
        self, model: "nn.Module", run: Run, fingerprint: str, group: "Group"
    ) -> "Storage":
        """Where checkpoints go."""
        from drivetrain.train.checkpoints.checkpoint import Checkpoints

        leads = group.rank == 0
        emit = run.emit if leads else silent
        claim = Claim.of(run.directory, run.world)
        if leads:
            claim.take()
        return Checkpoints(run.directory, fingerprint, emit, writes=leads, claim=claim)

    def _first_callbacks(self, step: "Step", group: "Group") -> "tuple[Callback, ...]":
        """What happens after an update before it is reported, validated and kept."""
        if self.rows is None:
            return ()
        from drivetrain.train.rows.optimizers import ROW_OPTIMIZERS
        from drivetrain.train.rows.touched import TouchedRows

        factor = 1.0 if self.rows.lr is None else self.rows.lr / self.lr
        return (TouchedRows(step, ROW_OPTIMIZERS[self.rows.optimizer](self.betas), factor),)

    def _fitted(self, model: "nn.Module", run: Run, group: "Group") -> "nn.Module":
        """What is handed back of a model that has its final weights."""
        return model

    def _assemble(
        self,
        model: "nn.Module",
        source: Examples,
        run: Run,
        group: "Group",
        ending: "Ending",
    ) -> "tuple[Loop, Keep, Validate]":
        from drivetrain.train.checkpoints.behind import Behind
        from drivetrain.train.checkpoints.resume import Keep
        from drivetrain.train.loop.feed import Feed
        from drivetrain.train.loop.loop import Loop
        from drivetrain.train.loop.report import Report
        from drivetrain.train.loop.validate import Validate

        rows = source.rows("train")
        # One of them speaks for all: their losses and figures are the same.
        emit = run.emit if group.rank == 0 else silent
        protection = self._protection(source, run, group, emit)
        step = self._step(model, run.device, rows, group, protection)
        scores = getattr(self.loss, "scores", None) or (
            lambda outputs, targets: {"loss": self.loss(outputs, targets)}
        )
        validate = Validate(scores, self.early_stopping, every=self.validate_every)
        fingerprint = digest(self, self._shapes(model), rows, source.rows("validate"))
        first = self._first_callbacks(step, group)
        if protection is not None:
            first = (*first, protection.secret)
        keep = Keep(
            Behind(self._checkpoints(model, run, fingerprint, group)),
            {"validate": validate, **{type(each).__name__.lower(): each for each in first}},
            seconds=self.checkpoint_seconds,
            steps=self.checkpoint_steps,
            ending=ending,
        )
        report = Report(None if rows is None else rows * self.epochs)
        loop = Loop(
            step,
            source if protection is None else protection.examples,
            Feed(source, run.device, getattr(self.loss, "check", None)),
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
            group=group,
            drawn=protection is not None,
            emit=emit,
            callbacks=(*first, report, validate, keep),
        )
        return loop, keep, validate

    def _protection(
        self, source: Examples, run: Run, group: "Group", emit: Emit
    ) -> "Protection | None":
        if self.privacy is None:
            return None
        from drivetrain.train.privacy.protection import protect

        size, epochs = self.batch_size, self.epochs
        return protect(self.privacy, source, run, group, emit, batch_size=size, epochs=epochs)

    def _step(
        self,
        model: "nn.Module",
        device: str,
        rows: int | None,
        group: "Group",
        protection: "Protection | None" = None,
    ) -> "Step":
        from drivetrain.train.loop.device import check_bfloat16, check_compiler
        from drivetrain.train.loop.optimizer import make

        if self.precision == "bfloat16":
            check_bfloat16(device)
        if self.compile:
            check_compiler(device)
        total = None
        if rows is not None:
            batches = -(-rows // self.batch_size)
            total = -(-batches // self.accumulate) * self.epochs
        optimizer = make(
            model,
            self.optimizer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            embedding_decay=self.embedding_decay,
            momentum=self.momentum,
            betas=self.betas,
        )
        kind = self._kind_of_step(group) if protection is None else protection.step
        return kind(
            model,
            self.loss,
            optimizer,
            rate=lambda step: self.lr * self.schedule.factor(step, total),
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            clip_norm=self.clip_norm,
            precision=self.precision,
            average=self.average,
            compile=self.compile,
            exchange=self._exchange(model, group),
        )

    def _final_weights(self, step: "Step", validate: "Validate") -> None:
        """The best weights, or the averaged ones, or those that there are."""
        from drivetrain.train.checkpoints.resume import load_weights, unique

        if validate.weights:
            load_weights(step.model, validate.weights)
        elif step.average is not None:
            with step.evaluated() as served:
                weights = {name: tensor.clone() for name, tensor in unique(served)}
            load_weights(step.model, weights)
