"""What private training costs: ε of Gaussian noise on Poisson samples, by loss distributions."""

from functools import cache
from typing import TYPE_CHECKING, Any

from drivetrain.core.errors import wrong
from drivetrain.core.need import need

if TYPE_CHECKING:
    from drivetrain.train.private import Private

_COARSE = 1e-3
"""The grid on which noise is solved for. Any grid errs to the safe side, a coarser one more so."""
_LEAST_NOISE = 0.3
"""Below it ε says nothing any more, and takes long to compute."""


@cache
def epsilon(*, sampling: float, noise: float, updates: int, delta: float) -> float:
    """The ε that so many updates spend, an upper bound.

    Args:
        sampling: the probability with which a row is in a batch.
        noise: the standard deviation of the noise over the norm that rows are cut to; above 0.
        updates: how many batches are taken.
        delta: the probability with which ε may not hold.

    Raises:
        ImportError: the extra ``privacy`` is not installed.
    """
    accountant = need("dp_accounting.pld", "privacy").PLDAccountant(_neighbours())
    accountant.compose(_spent(sampling, noise, updates))
    return float(accountant.get_epsilon(delta))


@cache
def noise_for(most: float, *, sampling: float, updates: int, delta: float) -> float:
    """About the least noise that spends at most ε ``most``; arguments as of :func:`epsilon`.

    Raises:
        ImportError: the extra ``privacy`` is not installed.
    """
    accounting, pld = need("dp_accounting", "privacy"), need("dp_accounting.pld", "privacy")

    def spends(noise: float) -> float:
        accountant = pld.PLDAccountant(_neighbours(), _COARSE)
        return accountant.compose(_spent(sampling, noise, updates)).get_epsilon(delta)

    if spends(_LEAST_NOISE) <= most:
        return _LEAST_NOISE
    return float(
        accounting.calibrate_dp_mechanism(
            lambda: pld.PLDAccountant(_neighbours(), _COARSE),
            lambda noise: _spent(sampling, noise, updates),
            most,
            delta,
            accounting.LowerEndpointAndGuess(_LEAST_NOISE, 2 * _LEAST_NOISE),
            tol=1e-3,
        )
    )


def planned(private: "Private", *, rows: int, batch_size: int, updates: int) -> tuple[float, float]:
    """The noise multiplier of a whole training, and the ε that it will have spent.

    ε is infinite where there is no noise. It is known before the first batch, since nothing that
    training finds can end it early.

    Args:
        private: the declaration.
        rows: of the training split.
        batch_size: rows expected in a batch.
        updates: of the whole training.

    Raises:
        ImportError: the extra ``privacy`` is not installed.
        ValueError: ``delta`` or the batch is too large for the rows.
    """
    if not rows:
        raise ValueError("split 'train': found 0 rows, allowed: at least 1.")
    if batch_size > rows:
        raise wrong("batch_size with privacy", batch_size, f"at most the {rows} training rows")
    if private.delta >= 1 / rows:
        raise wrong("Private.delta", private.delta, f"below 1 / {rows}, one over the training rows")
    run: dict[str, Any] = {
        "sampling": batch_size / rows,
        "updates": updates,
        "delta": private.delta,
    }
    noise = private.noise_multiplier
    if noise is None:
        assert private.epsilon is not None
        noise = noise_for(private.epsilon, **run)
    return noise, epsilon(noise=noise, **run) if noise else float("inf")


def _neighbours() -> Any:
    return need("dp_accounting", "privacy").NeighboringRelation.ADD_OR_REMOVE_ONE


def _spent(sampling: float, noise: float, updates: int) -> Any:
    event = need("dp_accounting.dp_event", "privacy")
    update = event.PoissonSampledDpEvent(sampling, event.GaussianDpEvent(noise))
    return event.SelfComposedDpEvent(update, updates)
