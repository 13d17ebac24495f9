"""Columns, rows as a person writes them, and what a graph is fed."""

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.batch import (
    Batch,
    Categorical,
    byte_matrix,
    column_of,
    feed,
    field_of_arrow,
    microseconds,
)
from drivetrain.core.schema import MISSING_INT, Field, Schema

CARRIER = Categorical(np.array([0, 1, 0], np.int32), np.array(["UA", ""], dtype=object))
BATCH = Batch({"delay": np.array([1.0, np.nan, 3.0], np.float32), "carrier": CARRIER})
NEW_YORK = timezone(timedelta(hours=-5))


def test_columns_have_one_length():
    with pytest.raises(ValueError, match="one length"):
        Batch({"a": np.arange(2), "b": np.arange(3)})
    assert len(Batch({})) == 0


def test_a_categorical_reads_as_a_plain_column():
    assert BATCH["carrier"].tolist() == ["UA", "", "UA"]
    assert isinstance(BATCH.column("carrier"), Categorical)
    assert ("carrier" in BATCH, "origin" in BATCH) == (True, False)


def test_an_unknown_column_suggests_the_nearest():
    for read in (BATCH.column, BATCH.__getitem__, lambda name: BATCH.select([name])):
        with pytest.raises(ValueError, match=r"unknown column 'carier'.*Did you mean 'carrier'"):
            read("carier")


def test_parts_of_a_batch():
    assert BATCH.slice(1, 3)["carrier"].tolist() == ["", "UA"]
    assert BATCH.take(np.array([2, 2]))["delay"].tolist() == [3.0, 3.0]
    assert list(BATCH.select(["carrier"]).columns) == ["carrier"]
    assert list(BATCH.with_columns({"x": np.arange(3)}).columns) == ["delay", "carrier", "x"]
    assert np.shares_memory(BATCH.slice(0, 2)["delay"], BATCH["delay"])


def test_batches_are_joined_end_to_end():
    joined = Batch.concat([BATCH, BATCH.slice(0, 1)])
    assert joined["carrier"].tolist() == ["UA", "", "UA", "UA"]
    assert Batch.concat([BATCH]) is BATCH
    with pytest.raises(ValueError, match="found 0 batches"):
        Batch.concat([])


def test_rows_are_plain_python():
    first = next(BATCH.rows())
    assert first == {"delay": 1.0, "carrier": "UA"}
    assert type(first["delay"]) is float


# -- rows as a person writes them ------------------------------------------------------------------

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


# -- what a graph is fed ---------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.text(max_size=6), max_size=6), st.one_of(st.none(), st.integers(1, 8)))
def test_a_byte_matrix_holds_the_bytes_and_then_zeros(values: list[str], limit: int | None):
    matrix = byte_matrix(np.array(values, dtype=object), limit)
    encoded = [value.encode()[:limit] for value in values]
    assert matrix.shape == (len(values), max([1, *map(len, encoded)]))
    for row, value in zip(matrix, encoded, strict=True):
        assert row.tobytes() == value.ljust(len(row), b"\0")


def test_a_column_is_fed_by_its_name_and_its_bytes_by_a_suffix():
    assert feed(BATCH, "delay", ("rows",)) is BATCH["delay"]
    assert feed(BATCH, "carrier", ("rows",)).tolist() == ["UA", "", "UA"]
    assert feed(BATCH, "carrier.utf8", ("rows", "n")).tolist() == [[85, 65], [0, 0], [85, 65]]
    assert feed(BATCH, "carrier.utf8", ("rows", "bytes_max_1")).tolist() == [[85], [0], [85]]
    plain = Batch({"carrier": BATCH["carrier"]})
    assert feed(plain, "carrier.utf8", ()).tolist() == [[85, 65], [0, 0], [85, 65]]


@pytest.mark.parametrize("name", ["carrie", "carrie.utf8"])
def test_a_column_that_is_not_there_is_not_fed(name: str):
    with pytest.raises(ValueError, match=r"unknown column 'carrie'.*Did you mean 'carrier'"):
        feed(BATCH, name, ())


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
