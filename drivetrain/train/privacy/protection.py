"""What a strategy needs to train privately: drawn examples, a secret, noise, and what it costs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from drivetrain.core.errors import wrong
from drivetrain.core.metric import Emit, Metric, Note
from drivetrain.core.seams import Addressable, Examples, Run
from drivetrain.train.privacy.accountant import planned
from drivetrain.train.privacy.poisson import Poisson
from drivetrain.train.privacy.private_step import PrivateStep
from drivetrain.train.privacy.secret import Secret
from drivetrain.train.private import Private
from drivetrain.train.together.group import Group


@dataclass(frozen=True)
class Protection:
    """The parts of one private training.

    Attributes:
        private: the declaration.
        examples: whose training batches are drawn.
        secret: what draws them; a callback, for checkpoints to keep.
        noise_multiplier: the declared one, or the one that was solved for.
        emit: where the steps' notes go.
        kind: what takes a batch.
    """

    private: Private
    examples: Poisson
    secret: Secret
    noise_multiplier: float
    emit: Emit
    kind: Callable[..., PrivateStep] = PrivateStep

    def step(self, *arguments: Any, **options: Any) -> PrivateStep:
        """A step as of :class:`drivetrain.train.loop.step.Step`, that hides rows."""
        return self.kind(
            *arguments,
            private=self.private,
            noise_multiplier=self.noise_multiplier,
            secret=self.secret,
            emit=self.emit,
            **options,
        )


def protect(
    private: Private,
    source: Examples,
    run: Run,
    group: Group,
    emit: Emit,
    *,
    batch_size: int,
    epochs: int,
) -> Protection:
    """Plan a private training, and say what it will have spent.

    ``privacy/epsilon``, ``privacy/delta``, ``privacy/noise_multiplier`` and ``privacy/clip_norm``
    are emitted; they are known before the first batch. Checkpoints hold the secret, so their
    directory is closed to others.

    Raises:
        ImportError: the extra ``privacy`` is not installed.
        ValueError: rows that can't be counted or taken by number, or too few of them.
    """
    rows = source.rows("train")
    if rows is None or not hasattr(source, "take"):
        raise wrong("privacy", "events that nobody can count", "rows in files, which can be drawn")
    noise = torch.zeros(1, dtype=torch.float64)
    if group.rank == 0:  # one solves for all: another machine's last digit may be another
        updates = epochs * -(-rows // batch_size)
        noise[0], spent = planned(private, rows=rows, batch_size=batch_size, updates=updates)
        _say(private, float(noise[0]), spent, emit)
        run.directory.mkdir(parents=True, exist_ok=True)
        run.directory.chmod(0o700)
    noise = group.sum(noise)
    secret = Secret(group, private.seed_for_tests)
    examples = Poisson(cast(Addressable, source), rows, secret)
    return Protection(private, examples, secret, float(noise[0]), emit)


def _say(private: Private, noise: float, spent: float, emit: Emit) -> None:
    if private.seed_for_tests is not None:
        text = "privacy with seed_for_tests: whoever knows the seed takes the noise off again"
        emit(Note(stage="train", text=text, warning=True))
    if not noise:
        text = "privacy without noise: nothing is private, and no epsilon is stated"
        emit(Note(stage="train", text=text, warning=True))
        return
    figures = {
        "epsilon": spent,
        "delta": private.delta,
        "noise_multiplier": noise,
        "clip_norm": private.clip_norm,
    }
    for name, value in figures.items():
        emit(Metric(name=f"privacy/{name}", value=value))
