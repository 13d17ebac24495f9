import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.train import Constant, Cosine, StepDecay
from drivetrain.train.schedule import Schedule

STEPS = st.integers(0, 300)


def test_constant_warms_up_in_a_line() -> None:
    found = [Constant(warmup=3).factor(step, None) for step in range(5)]
    assert found == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert Constant().factor(0, None) == 1.0


def test_a_share_warms_up_that_share_of_all_steps() -> None:
    assert Constant(warmup=0.1).factor(9, 100) == pytest.approx(10 / 11)
    assert Constant(warmup=0.1).factor(10, 100) == 1.0


@given(STEPS, st.floats(0, 1))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_cosine_follows_its_formula(step: int, floor: float) -> None:
    found = Cosine(floor=floor).factor(step, 200)
    expected = floor + (1 - floor) * (1 + math.cos(math.pi * min(step, 200) / 200)) / 2
    assert found == pytest.approx(expected)


def test_cosine_starts_after_its_warm_up_and_ends_at_its_floor() -> None:
    schedule = Cosine(warmup=20, floor=0.1)
    assert schedule.factor(0, 100) == pytest.approx(1 / 21)
    assert schedule.factor(20, 100) == 1.0
    assert schedule.factor(60, 100) == pytest.approx(0.55)
    assert schedule.factor(100, 100) == pytest.approx(0.1)
    assert schedule.factor(500, 100) == pytest.approx(0.1)


@given(STEPS, st.integers(1, 50), st.floats(0.1, 1))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_step_decay_follows_its_formula(step: int, every: int, by: float) -> None:
    assert StepDecay(every=every, by=by).factor(step, None) == pytest.approx(by ** (step // every))


@pytest.mark.parametrize(
    "schedule", [Cosine(), Constant(warmup=0.1), StepDecay(every=2, warmup=0.5)]
)
def test_a_schedule_that_needs_an_end_says_so(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match=f"{type(schedule).__name__} needs the number of steps"):
        schedule.factor(0, None)


def test_cosine_may_bring_its_own_length() -> None:
    assert Cosine(steps=10).factor(5, None) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(warmup=-1),
        lambda: Cosine(warmup=1.5),
        lambda: Cosine(floor=2),
        lambda: Cosine(steps=0),
        lambda: StepDecay(every=0),
        lambda: StepDecay(every=1, by=0),
    ],
)
def test_a_wrong_option_is_refused(make: object) -> None:
    with pytest.raises(ValueError, match="allowed"):
        make()  # pyright: ignore
