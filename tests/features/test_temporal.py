"""Periods: where they begin, that they close, and what is missing."""

from typing import Any

import numpy as np
import pytest

from drivetrain.core.batch import Batch
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.values import column_of
from drivetrain.features.compile import compile
from drivetrain.features.temporal import Cyclic

SCHEMA = Schema((Field("at", "timestamp"), Field("hour", "float64"), Field("n", "int64")))
UP, RIGHT, DOWN, LEFT = (0.0, 1.0), (1.0, 0.0), (0.0, -1.0), (-1.0, 0.0)
"""Sine and cosine after no, a quarter, half and three quarters of a turn."""


def turns(feature: Cyclic, values: list[Any]) -> np.ndarray[Any, Any]:
    batch = Batch({feature.column: column_of(values, SCHEMA.field(feature.column))})
    return compile([feature], SCHEMA, {})[0].run(batch)["dense"]


def test_a_day_turns_once_from_midnight() -> None:
    days = ["2013-01-01T00:00", "2013-06-30T06:00", "1969-12-31T12:00", "0001-01-01T18:00"]
    np.testing.assert_allclose(turns(Cyclic("at"), days), [UP, RIGHT, DOWN, LEFT], atol=1e-9)


def test_a_week_turns_once_from_monday() -> None:
    days = ["2026-11-23T00:00", "2026-11-24T18:00", "1969-12-25T12:00", "2026-11-28T06:00"]
    found = turns(Cyclic("at", period="weekday"), days)
    np.testing.assert_allclose(found, [UP, RIGHT, DOWN, LEFT], atol=1e-9)


def test_a_year_stays_within_two_days_of_the_calendar() -> None:
    news = [f"{year}-01-01" for year in range(1900, 2101)]
    sine, cosine = turns(Cyclic("at", period="day_of_year"), news).T
    days = np.arctan2(sine, cosine) / (2 * np.pi) * 365.2425
    assert np.abs(days).max() < 2


def test_seconds_and_numbers_are_periods_of_their_own() -> None:
    moments = turns(Cyclic("at", period=0.000004), [0, 1, 2, 3, -1, 2**62])
    np.testing.assert_allclose(moments, [UP, RIGHT, DOWN, LEFT, LEFT, UP], atol=1e-9)
    hours = turns(Cyclic("hour", period=24.0), [0.0, 6.0, 36.0, -6.0, 24.0])
    np.testing.assert_allclose(hours, [UP, RIGHT, DOWN, LEFT, UP], atol=1e-9)
    whole = turns(Cyclic("n", period=4.0), [8, 5, -2, 3])
    np.testing.assert_allclose(whole, [UP, RIGHT, DOWN, LEFT], atol=1e-9)


@pytest.mark.parametrize(
    ("feature", "values"),
    [
        (Cyclic("at"), [None, MISSING_INT]),
        (Cyclic("hour", period=24.0), [None, float("nan"), float("inf")]),
        (Cyclic("n", period=24.0), [None]),
    ],
)
def test_a_missing_moment_is_no_moment(feature: Cyclic, values: list[Any]) -> None:
    assert (turns(feature, values) == 0.0).all()


def test_every_point_lies_on_the_circle() -> None:
    random = np.random.default_rng(3)
    values = random.integers(-(2**63) + 1, 2**63 - 1, 5000).tolist()
    for period in ("hour", "weekday", "day_of_year", 3.7):
        found = turns(Cyclic("at", period=period), values).astype(np.float64)
        np.testing.assert_allclose((found**2).sum(1), 1.0, atol=3e-7)
