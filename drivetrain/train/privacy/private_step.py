"""The training step of private training: rows' gradients are cut and summed, and noise is added."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from drivetrain.core.errors import wrong
from drivetrain.core.metric import Emit, Note
from drivetrain.train.checkpoints.pieces import cut
from drivetrain.train.loop.step import Step
from drivetrain.train.privacy.per_sample import ByLayer, ByRow, ByVmap, Clipped, mixing, unruled
from drivetrain.train.privacy.secret import Secret
from drivetrain.train.private import Private

_VMAP_BYTES = 1 << 28
"""What rows' gradients may take at a time where each of them is made."""
_TRIED_ROWS = 4
_TRIED_NORM = 1e-6
"""Rows in a trial are cut to so little that the norm of each of them counts."""


class PrivateStep(Step):
    """A :class:`drivetrain.train.loop.step.Step` whose updates hide each row (DP-SGD).

    The sum over a drawn batch is divided by the rows *expected* in one: the number that was drawn
    would tell of rows. All processes add the same noise to the sum that all have, so that what is
    trained does not depend on how many there are.

    Args:
        model: without modules that mix rows.
        loss: a mean over rows, of each row's own outputs and targets.
        optimizer: as of :class:`~drivetrain.train.loop.step.Step`.
        private: the declaration.
        noise_multiplier: the noise's standard deviation over the norm that rows are cut to.
        secret: draws the noise.
        emit: hears of a method that was given up, and of rows that were left out.
        options: the others of :class:`~drivetrain.train.loop.step.Step`.

    Raises:
        ValueError: the model mixes rows, or the method can't take it; names the modules.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Mapping[str, Tensor]], Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        private: Private,
        noise_multiplier: float,
        secret: Secret,
        emit: Emit,
        **options: Any,
    ) -> None:
        super().__init__(model, loss, optimizer, **options)
        if found := mixing(self._learner):
            allowed = "none that computes a row from others; a layer or group norm does not"
            raise wrong("modules with privacy", ", ".join(found), allowed)
        self.private = private
        self.noise_multiplier = noise_multiplier
        self.secret = secret
        self.emit = emit
        self.left_out = 0
        self._method = _first(private, self._learner)
        self._clipped: Clipped | None = None

    @property
    def _learner(self) -> nn.Module:
        """The model whose rows' gradients are found."""
        return self.model

    def __call__(
        self,
        inputs: Sequence[Tensor],
        targets: Mapping[str, Tensor],
        rows: int,
        of_all: int | None = None,
    ) -> bool:
        """Take one drawn batch, which may be empty, and update."""
        loss = self._learn_privately(inputs, targets, rows) / self.full
        if self.exchange is not None:
            loss = self.exchange.finish(loss)
        self._hide()
        self.losses.append(loss)
        self._update()
        return True

    def _learn_privately(
        self, inputs: Sequence[Tensor], targets: Mapping[str, Tensor], rows: int
    ) -> Tensor:
        """Let gradients be the sum of rows' cut ones by the rows expected; the sum of losses."""
        loss = torch.zeros((), device=self.device)
        if rows:
            clipped = self._clipped or self._tried(inputs, targets)
            at_once = self._rows_at_once or rows
            for first in range(0, rows, at_once):
                part = slice(first, first + at_once)
                found, left_out = clipped(
                    [tensor[part] for tensor in inputs],
                    {name: tensor[part] for name, tensor in targets.items()},
                    self.private.clip_norm,
                )
                loss = loss + found
                self._leave_out(left_out)
        gradients = [p.grad for p in self._learner.parameters() if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.full)  # pyright: ignore[reportPrivateImportUsage]
        return loss

    @property
    def _rows_at_once(self) -> int | None:
        if self.private.rows_at_once is not None or self._method == "ghost":
            return self.private.rows_at_once
        bytes_a_row = sum(p.numel() * p.element_size() for p in self.parameters)
        return max(1, _VMAP_BYTES // bytes_a_row)

    @torch.no_grad()
    def _hide(self) -> None:
        """Add noise to the mean, also to that of parameters which no row had a gradient for."""
        sizes = [p.numel() for p in self.parameters]
        deviation = self.noise_multiplier * self.private.clip_norm / self.full
        drawn = self.secret.noise(self.done, sum(sizes)).to(self.device) * deviation
        for parameter, noise in zip(self.parameters, drawn.split(sizes), strict=True):
            noise = cut(noise.view(parameter.shape), parameter)
            parameter.grad = noise if parameter.grad is None else parameter.grad.add_(noise)

    def _leave_out(self, rows: int) -> None:
        if rows and not self.left_out:
            text = (
                f"the gradients of {rows} rows are not finite at update {self.done}: such rows "
                "have no part in the training; try a smaller train.lr"
            )
            self.emit(Note(stage="train", text=text, warning=True))
        self.left_out += rows

    # -- which method --------------------------------------------------------------------------

    def _tried(self, inputs: Sequence[Tensor], targets: Mapping[str, Tensor]) -> Clipped:
        """The method, held against one backward pass a row on some rows of the first batch.

        A module that computes with another's weights, or a loss that is no mean over rows, is seen
        by no list of layers; it would make a norm wrong, and with it what is promised.
        """
        few = [tensor[:_TRIED_ROWS] for tensor in inputs]
        theirs = {name: tensor[:_TRIED_ROWS] for name, tensor in targets.items()}
        true = self._sum(ByRow(self._learner, self.loss), few, theirs)
        while True:
            made = {"ghost": ByLayer, "vmap": ByVmap}[self._method](self._learner, self.loss)
            try:
                found = self._sum(made, few, theirs)
                away = float((found - true).norm()) / (_TRIED_NORM * len(few[0]))
                why = "" if away < 1e-2 else f"its sum of rows' gradients is {away:.2g} away"
            except (RuntimeError, ValueError) as error:
                why = str(error).strip().splitlines()[0]
            if not why:
                self._clipped = made
                return made
            if self.private.method != "auto" or self._method == "vmap":
                allowed = f"one that can take this model and loss; {why}"
                raise wrong("Private.method", self._method, allowed)
            text = f"privacy by vmap, since ghost can't take this model and loss: {why}"
            self.emit(Note(stage="train", text=text))
            self._method = "vmap"

    def _sum(self, clipped: Clipped, inputs: list[Tensor], targets: dict[str, Tensor]) -> Tensor:
        """What a method gives for some rows, without dropout and without a trace."""
        learner = self._learner
        parameters = [p for p in learner.parameters() if p.requires_grad]
        training = learner.training
        learner.eval()
        try:
            clipped(inputs, targets, _TRIED_NORM)
            zeros = (p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters)
            return torch.cat([gradient.flatten() for gradient in zeros])
        finally:
            learner.train(training)
            for parameter in parameters:
                parameter.grad = None


def _first(private: Private, model: nn.Module) -> str:
    """The method to begin with: the faster one for the model's layers.

    Convolutions see many places, whose patches ``ghost`` lays out; ``vmap`` needs not.
    """
    found = unruled(model)
    if private.method == "ghost" and found:
        raise wrong("Private.method", "ghost", f"'vmap' for a model with {', '.join(found)}")
    if private.method != "auto":
        return private.method
    convolves = any(isinstance(m, nn.Conv1d | nn.Conv2d) for m in model.modules())
    return "vmap" if found or convolves else "ghost"
