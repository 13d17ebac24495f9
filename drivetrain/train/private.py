"""Differentially private training as a declaration: how rows are cut, and what may be spent."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.metric import Emitted, Metric, Note
from drivetrain.train.distill import Distill

if TYPE_CHECKING:
    from drivetrain.train.single import Single

METHODS = ("auto", "ghost", "vmap")


@dataclass(frozen=True, kw_only=True)
class Private:
    """Trains so that the weights say little of any one row of the training split (DP-SGD).

    Each row's gradient is cut to ``clip_norm``, and Gaussian noise is added to their sum. A batch
    takes each row with the probability ``batch_size / rows``, by itself (Poisson sampling), which
    is what the accountant assumes; batches so vary in size and may be empty. The weights are then
    (ε, δ)-differentially private where neighbours differ by one row more or less; how many rows
    there are counts as known.

    Source: Abadi et al., Deep Learning with Differential Privacy, CCS 2016; Doroshenko et al.,
    Connect the Dots: Tighter Discrete Approximations of Privacy Loss Distributions, PETS 2022.

    Attributes:
        clip_norm: the largest norm that a row's gradient has.
        delta: the probability with which ε may not hold; below one over the rows.
        noise_multiplier: the noise's standard deviation over ``clip_norm``. 0 adds none, and
            nothing is then private.
        epsilon: the most that may be spent, from which the noise is solved; this or the noise.
        method: how rows' gradients are found: ``ghost`` from what layers take and give back,
            without ever making them; ``vmap`` one for each row, for any model that
            ``torch.func`` takes; ``auto`` is ``ghost`` for models of layers that it knows.
        rows_at_once: bounds memory: so many rows' gradients are made at a time. None takes the
            whole batch with ``ghost``, and what fits in a quarter of a gigabyte with ``vmap``.
        seed_for_tests: of the batches and the noise. None draws a secret from the operating
            system, as privacy needs: whoever knows it takes the noise off again.
    """

    clip_norm: float
    delta: float
    noise_multiplier: float | None = None
    epsilon: float | None = None
    method: Literal["auto", "ghost", "vmap"] = "auto"
    rows_at_once: int | None = None
    seed_for_tests: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.clip_norm < float("inf"):
            raise wrong("Private.clip_norm", self.clip_norm, "a number above 0")
        if not 0 < self.delta < 1:
            raise wrong("Private.delta", self.delta, "above 0 and below 1")
        if (self.noise_multiplier is None) == (self.epsilon is None):
            found = (self.noise_multiplier, self.epsilon)
            raise wrong("Private: (noise_multiplier, epsilon)", found, "one of the two")
        if self.noise_multiplier is not None and not 0 <= self.noise_multiplier < float("inf"):
            raise wrong("Private.noise_multiplier", self.noise_multiplier, "0 or more")
        if self.epsilon is not None and not 0 < self.epsilon < float("inf"):
            raise wrong("Private.epsilon", self.epsilon, "a number above 0")
        if self.method not in METHODS:
            raise unknown("Private.method", self.method, METHODS)
        if self.rows_at_once is not None and self.rows_at_once < 1:
            raise wrong("Private.rows_at_once", self.rows_at_once, "1 or more, or None")

    def check(self, strategy: "Single") -> None:
        """Refuse what would make the stated ε untrue.

        Args:
            strategy: what it is an option of.

        Raises:
            ValueError: names the option and says why.
        """
        why = {
            "early_stopping": "None: which weights are kept would be chosen without noise",
            "clip_norm": "None: each row's gradient is cut by Private.clip_norm",
            "compile": "False: what layers take and give back is read between them",
            "compression": "None: it rounds after the cut, and owes rows to later updates",
        }
        where = type(strategy).__name__
        if not vars(type(strategy)).get("can_be_private"):
            allowed = (
                "None: ε is computed for updates that all processes take together, with noise on "
                "each; Single, AllReduce and Sharded do so"
            )
            raise wrong(f"{where}.privacy", self, allowed)
        for name, allowed in why.items():
            found = getattr(strategy, name, None)
            if found:
                raise wrong(f"{where}.{name} with privacy", found, allowed)
        if isinstance(strategy.loss, Distill):
            allowed = "one of the rows alone: a teacher may have learnt them without noise"
            raise wrong(f"{where}.loss with privacy", type(strategy.loss).__name__, allowed)
        if strategy.precision != "float32":
            allowed = "'float32': bfloat16 rounds norms beyond the cut"
            raise wrong(f"{where}.precision with privacy", strategy.precision, allowed)
        if strategy.accumulate != 1:
            allowed = (
                "1: an update is one batch, in which a row is once at most; "
                "Private.rows_at_once bounds the memory"
            )
            raise wrong(f"{where}.accumulate with privacy", strategy.accumulate, allowed)

    def unprotected(self, columns: Collection[str], features: Collection[str]) -> list[Emitted]:
        """What ε does not cover, to be told: what was read of the training rows without noise.

        Args:
            columns: whose statistics the bundle holds.
            features: those that were fitted on statistics.
        """
        told: list[Emitted] = [
            Metric(name="privacy/unprotected_columns", value=float(len(columns)))
        ]
        if columns:
            text = (
                "epsilon is that of the weights alone: the bundle also holds statistics of "
                f"{', '.join(sorted(columns))}, read from the rows without noise"
            )
            text += f"; features were fitted on them: {', '.join(features)}" if features else ""
            told.append(Note(stage="train", text=text, warning=True))
        return told
