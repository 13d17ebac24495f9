"""Expressions: values that describe, errors that teach."""

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from drivetrain.core.describe import digest
from drivetrain.events import coalesce, col, concat, hours, lit, make_timestamp, when
from drivetrain.events.expression import Duration, lift


def test_truth_of_an_expression_is_an_error_that_names_the_operators():
    with pytest.raises(ValueError, match=r"col\('a'\) > 1 .*& for and, \| for or"):
        bool(col("a") > 1)
    with pytest.raises(ValueError, match="between"):
        _ = 1 < col("a") < 3


def test_same_expressions_describe_the_same_and_others_do_not():
    def made(limit, name="a"):
        return when(col(name).fill_null(0) > limit, hours(1) + col("t")).otherwise(col("t"))

    assert digest(made(1)) == digest(made(1))
    assert len({digest(made(1)), digest(made(1.0)), digest(made(True)), digest(made(1, "b"))}) == 4


def test_expressions_are_hashable_each_as_itself():
    a, b = col("x"), col("x")
    assert len({a, b, a}) == 2


def test_expression_reads_back_as_it_was_written():
    expression = ((col("a") + 1) * 2 > 3) & ~col("b").is_null() | col("c").isin(["x", "y"])
    written = "((((col('a') + 1) * 2) > 3) & ~(col('b').is_null())) | col('c').isin('x', 'y')"
    assert repr(expression) == written
    assert repr(concat(col("a"), "-")) == "concat(col('a'), '-')"
    assert repr(make_timestamp(1, 2, 3)) == "make_timestamp(1, 2, 3, 0, 0)"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (date(2013, 1, 2), datetime(2013, 1, 2)),
        (datetime(2013, 1, 2, 3, tzinfo=UTC), datetime(2013, 1, 2, 3)),
        (datetime(2013, 1, 2, 3, tzinfo=timezone(timedelta(hours=2))), datetime(2013, 1, 2, 1)),
    ],
)
def test_moments_become_utc_without_a_zone(value, kept):
    assert lit(value).value == kept


def test_length_of_time_is_exact():
    length = lift(timedelta(days=-1, microseconds=3))
    assert isinstance(length, Duration)
    assert length.microseconds == -86_400_000_000 + 3


@pytest.mark.parametrize("value", [object(), [1], {}, 2**63, "a\0b", "\ud800"])
def test_value_that_no_column_holds_is_refused(value):
    with pytest.raises(ValueError):
        lit(value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: col(""), "name of a column"),
        (lambda: col("a").cast("int46"), "Did you mean 'int64'"),
        (lambda: col("a").truncate("hours"), "Did you mean 'hour'"),
        (lambda: coalesce(), "at least one value"),
        (lambda: concat(), "at least one value"),
    ],
)
def test_wrong_construction_says_what_is_allowed(build, message):
    with pytest.raises(ValueError, match=message):
        build()
