"""The columns of a lake: types that change, columns that come, foreign tables."""

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from lakes import MICROSECOND, numbers, some

from drivetrain.core.schema import Field, Schema
from drivetrain.events.delta import Delta
from drivetrain.events.lake.lake import Lake


@pytest.mark.parametrize(
    ("column", "found", "due"),
    [
        (pa.array(["a", "b"]), "string", "int64"),
        (pa.array([1.5, 2.5]), "double", "int64"),
        (pa.array([1, 2], MICROSECOND), r"timestamp\[us\]", "int64"),
        (
            pa.array([[1], [2]], pa.list_(pa.int64(), 1)),
            r"fixed_size_list<item: int64>\[1\]",
            "int64",
        ),
        (pa.array([{"a": 1}, None]), "struct<a: int64>", "int64"),
    ],
)
def test_a_type_that_changes_is_an_error_and_nothing_is_written(path, column, found, due):
    lake = Lake.open(path)
    lake.append(some(0), "w", {"t": 3})
    before = sorted(path.rglob("*"))
    allowed = f"orders, column 'n': found {found}, allowed: {due}, as the table has it"
    with pytest.raises(ValueError, match=allowed):
        lake.append(pa.table({"n": column}), "w", {"t": 5})
    assert sorted(path.rglob("*")) == before
    lake.append(some(3), "w", {"t": 6})
    assert numbers(path) == list(range(6))


def test_numbers_that_are_wider_or_narrower_without_loss_go_in(path):
    lake = Lake.open(path, Schema((Field("n", "int64"), Field("x", "float64"))))
    lake.append(pa.table({"n": pa.array([1], pa.int8()), "x": pa.array([0.5], pa.float32())}))
    lake.append(pa.table({"n": pa.nulls(1), "x": [float("nan")]}))
    chunks = Delta(path).chunks(Delta(path).schema, 10)
    assert pa.concat_tables(chunks).to_pylist() == [{"n": 1, "x": 0.5}, {"n": None, "x": None}]
    with pytest.raises(ValueError, match="column 'x': found int64, allowed: double"):
        lake.append(pa.table({"n": [1], "x": [2**53 + 1]}))


def test_a_foreign_table_keeps_its_types_and_a_value_that_they_cannot_hold_is_an_error(path):
    columns = {"n": pa.array([1], pa.int32()), "t": pa.array([1], MICROSECOND)}
    write_deltalake(path, pa.table(columns))
    lake = Lake.open(path)
    lake.append(pa.table({"n": [2], "t": pa.array([5], pa.timestamp("us", "UTC"))}))
    assert pa.schema(DeltaTable(path).schema().to_arrow()).field("n").type == pa.int32()
    assert Delta(path).count() == 2
    with pytest.raises(ValueError, match=r"column 'n': found a value that is not .* int32"):
        lake.append(pa.table({"n": [2**40]}))


def test_columns_that_nothing_can_hold_or_that_are_there_twice_are_errors(path):
    lake = Lake.open(path)
    lake.append(some(0))
    with pytest.raises(
        ValueError, match="orders, column 'deep': found 'struct<a: int64>', allowed"
    ):
        lake.append(some(0, deep=pa.array([{"a": 1}] * 3)))
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["n", "n"])
    with pytest.raises(
        ValueError, match=r"orders, columns: found \['n'\], allowed: each name once"
    ):
        lake.append(twice)
    lake.append(some(3, empty=pa.nulls(3)))
    assert Delta(path).schema.names == ("n",), "a column without a value has no type yet"


def test_names_that_differ_in_case_alone_are_an_error_that_names_both(path):
    with pytest.raises(ValueError, match=r"orders, columns: found .*'N' beside 'n'"):
        Lake.open(path, Schema((Field("n", "int64"), Field("N", "int64"))))
    lake = Lake.open(path)
    lake.append(some(0))
    with pytest.raises(ValueError, match=r"'N' beside 'n'.*names that differ in more than case"):
        lake.append(some(3, N=[1, 2, 3]))
    lake.append(some(3))
    assert numbers(path) == list(range(6))


def test_a_schema_makes_the_table_and_is_held_against_one_that_is_there(path):
    schema = Schema((Field("n", "int64"), Field("v", "float32", (3,))))
    lake = Lake.open(path, schema)
    assert lake.schema == schema
    assert Lake.open(path, schema).version == 0
    with pytest.raises(ValueError, match="column 'n': found string, allowed: int64"):
        Lake.open(path, Schema((Field("n", "string"),)))
    wrong_shape = pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
    with pytest.raises(ValueError, match="column 'v': found fixed_size_list"):
        lake.append(pa.table({"n": [1], "v": wrong_shape}))


def test_an_empty_lake_has_no_table_yet(path):
    lake = Lake.open(path)
    with pytest.raises(FileNotFoundError, match="orders: there is no Delta table"):
        _ = lake.version
    first = Lake.open(path)
    first.append(some(0), "w", {"t": 3})
    with pytest.raises(ValueError, match="these rows are in the table already"):
        lake.append(some(0), "w", {"t": 3})
