"""Columns of one length, and what of them a graph is fed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.batch import Batch, Categorical, byte_matrix, feed

CARRIER = Categorical(np.array([0, 1, 0], np.int32), np.array(["UA", ""], dtype=object))
BATCH = Batch({"delay": np.array([1.0, np.nan, 3.0], np.float32), "carrier": CARRIER})


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
