"""The files of a lake: kept apart by a time, compacted, removed."""

from datetime import datetime

import numpy as np
import pyarrow as pa
import pytest
from lakes import MICROSECOND, numbers, some

from drivetrain.core.schema import Field, Schema
from drivetrain.events.delta import Delta
from drivetrain.events.lake.lake import Lake


def test_files_are_kept_apart_by_the_day_or_hour_of_a_time(path):
    at = [datetime(2026, 1, 1, 23, 59), None, datetime(1969, 12, 31, 1), datetime(2026, 1, 2)]
    rows = some(0, 4, at=pa.array(at, MICROSECOND))
    lake = Lake.open(path, partition_by=("hour(at)",))
    lake.append(rows)
    again = Lake.open(path)  # the table knows what its columns are made of
    again.append(rows)
    folders = {item.name for item in path.iterdir() if item.name != "_delta_log"}
    due = {"2026-01-01T23", "__HIVE_DEFAULT_PARTITION__", "1969-12-31T01", "2026-01-02T00"}
    assert folders == {f"at_hour={hour}" for hour in due}
    found = pa.concat_tables(Delta(path).chunks(Delta(path).schema, 10)).to_pylist()
    assert {(row["n"], row["at_hour"]) for row in found} == {
        (0, "2026-01-01T23"),
        (1, None),
        (2, "1969-12-31T01"),
        (3, "2026-01-02T00"),
    }
    assert Lake.open(path, partition_by=("hour(at)",)).version == 2
    with pytest.raises(
        ValueError, match=r"partition_by: found \['at_day'\], allowed: \['at_hour'\]"
    ):
        Lake.open(path, partition_by=("day(at)",))


def test_days_have_four_digits_and_a_time_beyond_them_none(path):
    years = ["0001-01-01", "0999-12-31", "9999-12-31T23:59:59.999999", "10000-01-01", "-0001-12-31"]
    at = np.array(years, "datetime64[us]")
    Lake.open(path, partition_by=("day(at)",)).append(some(0, 5, at=pa.array(at)))
    found = pa.concat_tables(Delta(path).chunks(Delta(path).schema, 10)).sort_by("n")
    assert found["at_day"].to_pylist() == ["0001-01-01", "0999-12-31", "9999-12-31", None, None]
    assert found["at"].to_numpy().tolist() == at.tolist(), "the time itself is kept"


@pytest.mark.parametrize(
    ("declared", "error"),
    [
        (("minute(at)",), r"unknown unit 'minute' in partition_by 'minute\(at\)'"),
        (("day(att)",), "unknown column 'att'"),
        (("day(n)",), "found 'n', allowed: a column of timestamps"),
        (("m",), "unknown column 'm'"),
        ("n", r"found 'n', allowed: names, such as \('n',\)"),
        (("day(at)",), "found 'at_day', allowed: a name not yet taken"),
    ],
)
def test_what_files_cannot_be_kept_apart_by_is_an_error(path, declared, error):
    schema = Schema((Field("n", "int64"), Field("at", "timestamp"), Field("at_day", "string")))
    with pytest.raises(ValueError, match=error):
        Lake.open(path, schema, partition_by=declared)
    assert not path.exists()


def test_compaction_makes_few_files_of_many_and_leaves_partitions_apart(path):
    lake = Lake.open(path, partition_by=("k",))
    for number in range(6):
        lake.append(some(number, 1, k=["ab"[number % 2]]), "w", {"t": number + 1})
    assert lake.files == 6
    done = lake.compact()
    assert (done.removed, done.added, lake.files) == (6, 2, 2)
    assert lake.compact().removed == 0
    lake.append(some(6, 1, k=["a"]), "w", {"t": 7})
    assert numbers(path) == list(range(7))
    with pytest.raises(ValueError, match="compact target: found 0"):
        lake.compact(0)


def test_vacuum_removes_what_no_version_needs_and_guards_what_is_young(path):
    lake = Lake.open(path)
    for number in range(3):
        lake.append(some(number, 1))
    lake.compact()
    orphan = path / "part-of-a-commit-that-failed.parquet"
    orphan.write_bytes(b"PAR1")
    assert lake.vacuum() == []
    with pytest.raises(ValueError, match=r"orders: .*retention"):
        lake.vacuum(0)
    removed = lake.vacuum(0, guard=False)
    assert len(removed) == 4
    assert not orphan.exists()
    assert numbers(path) == [0, 1, 2]
    with pytest.raises(ValueError, match="vacuum hours: found -1"):
        lake.vacuum(-1)
