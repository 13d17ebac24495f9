"""Rows as a person writes them become columns; what is no such value is named."""

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from drivetrain.core.arrow import field_of_arrow
from drivetrain.core.batch import Batch
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.values import column_of, microseconds

NEW_YORK = timezone(timedelta(hours=-5))
SCHEMA = Schema(
    (
        Field("s", "string"),
        Field("b", "bytes"),
        Field("i", "int64"),
        Field("f", "float32"),
        Field("d", "float64"),
        Field("t", "timestamp"),
        Field("v", "float32", (2,)),
    )
)
ROW: dict[str, Any] = {"s": "é", "b": "é", "i": 7, "f": 1, "d": 0.1, "t": 5, "v": [1, 2.5]}


def test_rows_become_columns_of_the_declared_types():
    batch = Batch.from_rows([ROW], SCHEMA)
    assert [batch[f.name].dtype.name for f in SCHEMA] == [f.numpy for f in SCHEMA]
    assert next(batch.rows()) == {**ROW, "b": "é".encode(), "v": [1.0, 2.5]}


def test_null_is_missing_in_every_type():
    row = next(Batch.from_rows([dict.fromkeys(SCHEMA.names)], SCHEMA).rows())
    assert (row["s"], row["b"], row["i"], row["t"]) == ("", b"", MISSING_INT, MISSING_INT)
    assert np.isnan([row["f"], row["d"], *row["v"]]).all()


def test_no_rows_are_columns_without_rows():
    batch = Batch.from_rows([], SCHEMA)
    assert len(batch) == 0
    assert batch["v"].shape == (0, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("s", 1),
        ("s", b"x"),
        ("s", "\ud800"),
        ("b", 1),
        ("b", "\ud800"),
        ("i", "1"),
        ("i", 1.5),
        ("i", 2**63),
        ("i", -(2**63) - 1),
        ("i", [1]),
        ("f", "1.0"),
        ("f", 10**400),
        ("d", {}),
        ("t", "yesterday"),
        ("t", 1.5),
        ("t", [1]),
        ("v", [1.0]),
        ("v", [1, 2, 3]),
        ("v", [[1, 2]]),
        ("v", 1.0),
        ("v", ["x", "y"]),
    ],
)
def test_a_wrong_value_names_its_row_and_column(name: str, value: object):
    with pytest.raises(ValueError, match=f"row 1, column '{name}': found .*allowed: "):
        Batch.from_rows([ROW, {**ROW, name: value}], SCHEMA)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("i", 3.0, 3),
        ("i", True, 1),
        ("i", np.int8(3), 3),
        ("i", float("nan"), MISSING_INT),
        ("i", float("-inf"), MISSING_INT),
        ("f", True, 1.0),
        ("f", 1e300, np.inf),
        ("f", np.float64(0.5), 0.5),
        ("b", bytearray(b"x"), b"x"),
        ("t", "1970-01-02", 86_400_000_000),
        ("t", "1970-01-01T00:00:00Z", 0),
        ("t", "1969-12-31T19:00:00.000001-05:00", 1),
        ("t", datetime(1970, 1, 1, 0, 0, 1), 1_000_000),
        ("t", datetime(1969, 12, 31, 19, tzinfo=NEW_YORK), 0),
        ("t", datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), -1_000_000),
        ("t", date(1970, 1, 2), 86_400_000_000),
        ("t", "9999-12-31T23:59:59.999999", 253_402_300_799_999_999),
    ],
)
def test_values_that_mean_the_same_are_taken(name: str, value: object, expected: object):
    assert Batch.from_rows([{**ROW, name: value}], SCHEMA)[name].tolist() == [expected]


def test_an_absent_and_an_unknown_column_are_named():
    with pytest.raises(ValueError, match="row 0: found no column 's', 'v'"):
        Batch.from_rows([{k: v for k, v in ROW.items() if k not in "sv"}], SCHEMA)
    with pytest.raises(ValueError, match="unknown column 'ff' in row 1"):
        Batch.from_rows([ROW, {**ROW, "ff": 1}], SCHEMA)


def test_rows_of_a_free_dimension_agree_with_the_first():
    free = Field("v", "float32", (None, 2))
    assert column_of([[[1, 2]], [[3, 4]]], free).shape == (2, 1, 2)
    with pytest.raises(ValueError, match=r"row 1, column 'v': found \(2, 2\)"):
        column_of([[[1, 2]], [[1, 2], [3, 4]]], free)
    with pytest.raises(ValueError, match="row 0, column 'v'"):
        column_of([None], free)  # how long would it be?


@pytest.mark.parametrize(
    ("dtype", "value"), [("string", ["x", 5]), ("string", ["x", {}]), ("int64", [1.5, 2])]
)
def test_an_element_of_another_type_in_a_shape_is_refused(dtype: Any, value: object):
    with pytest.raises(ValueError, match="row 0, column 'a'"):
        column_of([value], Field("a", dtype, (2,)))


def test_a_missing_text_in_a_shape_is_empty():
    field = Field("a", "string", (2,))
    found = column_of([["x", None], None], field)
    assert found.tolist() == [["x", ""], ["", ""]]
    lists = pa.array([["x", None], None, ["y", "z"], ["", "ü"]], pa.list_(pa.string(), 2))
    table = pa.table({"a": pa.chunked_array([lists[:1], lists[1:]])})
    assert field_of_arrow("a", lists.type) == field
    due = [["x", ""], ["", ""], ["y", "z"], ["", "ü"]]
    assert Batch.from_arrow(table, Schema((field,)))["a"].tolist() == due
    assert Batch.from_arrow(table.slice(2), Schema((field,)))["a"].tolist() == due[2:]
    assert Batch.from_arrow(table.slice(4), Schema((field,)))["a"].shape == (0, 2)
    back = Batch({"a": column_of(due, field)}).to_arrow()
    assert Batch.from_arrow(back, Schema((field,)))["a"].tolist() == due


@pytest.mark.parametrize(
    ("moment", "hours"), [("0001-01-01T00:00:00", 14), ("9999-12-31T23:59:59", -12)]
)
def test_a_moment_with_a_zone_may_lie_beyond_the_years_of_a_calendar(moment, hours):
    zone = f"{hours:+03d}:00"
    assert microseconds(moment + zone) == microseconds(moment) - hours * 3_600_000_000
