import math

import pytest

from drivetrain.train.stopping import Best, EarlyStopping


def test_it_counts_figures_that_are_no_better() -> None:
    best, rule = Best(), EarlyStopping()
    found = [best.better(value, step, rule) for step, value in enumerate([3, 2, 2.5, 2, math.nan])]
    assert found == [True, True, False, False, False]
    assert best == Best(value=2, step=1, since=3)


def test_larger_may_be_better_and_little_may_not_count() -> None:
    best, rule = Best(), EarlyStopping(larger=True, least=0.1, metric="validate/accuracy")
    assert [best.better(v, 0, rule) for v in (0.5, 0.55, 0.65)] == [True, False, True]


@pytest.mark.parametrize("options", [{"patience": 0}, {"least": -1}, {"metric": "loss"}])
def test_a_wrong_option_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="EarlyStopping"):
        EarlyStopping(**options)  # pyright: ignore
