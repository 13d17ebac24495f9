import math

import dp_accounting
import pytest

from drivetrain.train import Private
from drivetrain.train.privacy.accountant import epsilon, noise_for, planned

RUN = {"sampling": 0.05, "updates": 40, "delta": 1e-5}


def test_epsilon_is_the_accountants_own_number() -> None:
    from dp_accounting.pld import PLDAccountant

    event = dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(1.1))
    own = PLDAccountant().compose(event, 40).get_epsilon(1e-5)
    assert epsilon(noise=1.1, **RUN) == pytest.approx(own, rel=1e-9)


def test_one_update_of_all_rows_is_the_plain_gaussian_mechanism() -> None:
    # Balle and Wang, Improving the Gaussian Mechanism for Differential Privacy, 2018, theorem 8
    def normal(x: float) -> float:
        return (1 + math.erf(x / math.sqrt(2))) / 2

    noise = 2.0
    found = epsilon(sampling=1.0, noise=noise, updates=1, delta=1e-5)
    delta = normal(1 / (2 * noise) - found * noise) - math.exp(found) * normal(
        -1 / (2 * noise) - found * noise
    )
    assert delta == pytest.approx(1e-5, rel=0.01)


def test_epsilon_falls_with_noise_and_rises_with_sampling_and_updates() -> None:
    one = epsilon(noise=1.0, **RUN)
    assert epsilon(noise=1.5, **RUN) < one
    assert epsilon(noise=1.0, **{**RUN, "sampling": 0.1}) > one
    assert epsilon(noise=1.0, **{**RUN, "updates": 80}) > one
    assert epsilon(noise=1.0, **{**RUN, "delta": 1e-7}) > one


def test_the_noise_that_is_solved_for_spends_hardly_less_than_allowed() -> None:
    noise = noise_for(2.0, **RUN)
    assert 1.95 < epsilon(noise=noise, **RUN) <= 2.0


def test_a_plan_refuses_what_has_no_meaning() -> None:
    private = Private(clip_norm=1.0, delta=1e-3, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="below 1 / 1000"):
        planned(private, rows=1000, batch_size=10, updates=5)
    with pytest.raises(ValueError, match="at most the 100 training rows"):
        planned(private, rows=100, batch_size=200, updates=5)
    with pytest.raises(ValueError, match="found 0 rows"):
        planned(private, rows=0, batch_size=200, updates=5)


def test_no_noise_has_no_finite_epsilon() -> None:
    private = Private(clip_norm=1.0, delta=1e-5, noise_multiplier=0.0)
    assert planned(private, rows=1000, batch_size=10, updates=5) == (0.0, math.inf)
