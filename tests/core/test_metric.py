"""Bounds, and the one stream."""

import pytest

from drivetrain.core.metric import Emitted, Metric, Note, Progress, fan_out, silent

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "at_least", "at_most", "holds"),
    [
        (1.0, None, None, True),
        (NAN, None, None, True),
        (1.0, 1.0, 1.0, True),
        (0.9, 1.0, None, False),
        (1.1, None, 1.0, False),
        (NAN, 0.0, None, False),
        (NAN, None, 0.0, False),
        (float("inf"), 0.0, None, True),
    ],
)
def test_a_bound_holds_for_numbers_within_it(
    value: float, at_least: float | None, at_most: float | None, holds: bool
):
    assert Metric(name="m", value=value, at_least=at_least, at_most=at_most).holds is holds


def test_a_metric_reads_as_a_line():
    metric = Metric(name="test/auc", value=0.123456789, at_least=0.5, at_most=1)
    assert str(metric) == "test/auc 0.123457 (at least 0.5) (at most 1)"


def test_everything_reaches_every_listener_in_order():
    first: list[Emitted] = []
    second: list[Emitted] = []
    emit = fan_out(listener for listener in (first.append, second.append, silent))
    items = [Metric(name="a", value=1.0), Progress(stage="fit", done=1), Note(stage="s", text="t")]
    for item in items:
        emit(item)
    assert first == second == items
