"""Files that are laid down for a table first and committed by another process later."""

from datetime import datetime

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from drivetrain.core.schema import Field, Schema
from drivetrain.events.delta import Delta
from drivetrain.events.lake.additions import Addition, lay
from drivetrain.events.lake.lake import Lake

SCHEMA = Schema((Field("at", "timestamp"), Field("key", "string"), Field("n", "int64")))
TIMES = [datetime(2024, 1, 1, 3), datetime(2024, 1, 2, 4, 5, 6, 789_123), None]
ROWS = pa.table(
    {
        "at": pa.array(TIMES, pa.timestamp("us")),
        "key": ["a b/c=ü%41", None, "x"],
        "n": [1, 2, None],
    }
)


def laid(lake: Lake, rows: pa.Table = ROWS) -> list[Addition]:
    return lay(rows, lake.path, lake.due, lake.table.metadata().partition_columns)


def rows_of(path):
    table = Delta(path)
    found = pa.concat_tables(table.chunks(table.schema, 100))
    return found.select(SCHEMA.names).sort_by("at").to_pylist()


@pytest.mark.parametrize("by", [(), ("key",), ("day(at)",), ("at",), ("n", "key")])
def test_files_are_those_that_an_append_writes(tmp_path, by):
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    lake = Lake.open(ours, SCHEMA, partition_by=by)
    lake.commit_files(laid(lake), "writer", {"topic/0": 3})
    Lake.open(theirs, SCHEMA, partition_by=by).append(ROWS, "writer", {"topic/0": 3})
    assert rows_of(ours) == rows_of(theirs) == ROWS.to_pylist()
    assert Lake.open(ours).positions("writer") == {"topic/0": 3}
    if by:
        parts = [DeltaTable(path).partitions() for path in (ours, theirs)]
        found = [sorted((sorted(part.items()) for part in each), key=str) for each in parts]
        assert found[0] == found[1]


def test_a_file_says_how_many_rows_it_has_and_between_what_they_lie(tmp_path):
    lake = Lake.open(tmp_path / "table", SCHEMA)
    (file,) = laid(lake)
    assert file.stats == {
        "numRecords": 3,
        "minValues": {"at": "2024-01-01T03:00:00.000Z", "n": 1},
        "maxValues": {"at": "2024-01-02T04:05:06.790Z", "n": 2},
        "nullCount": {"at": 1, "key": 1, "n": 1},
    }
    lake.commit_files([file])
    assert Delta(tmp_path / "table").count() == 3


def test_files_that_no_commit_names_are_in_no_version(tmp_path):
    lake = Lake.open(tmp_path / "table", SCHEMA)
    laid(lake)
    lake.commit_files([], "writer", {"topic/0": 3})
    assert Delta(tmp_path / "table").count() == 0
    assert Lake.open(tmp_path / "table").positions("writer") == {"topic/0": 3}


def test_files_of_a_writer_that_another_process_has_passed_are_refused(tmp_path):
    lake = Lake.open(tmp_path / "table", SCHEMA)
    lake.positions("writer")
    other = Lake.open(tmp_path / "table")
    other.commit_files(laid(other), "writer", {"topic/0": 3})
    with pytest.raises(ValueError, match="another process that appends as 'writer'"):
        lake.commit_files(laid(lake), "writer", {"topic/0": 3})
    assert rows_of(tmp_path / "table") == ROWS.to_pylist()


def test_a_commit_of_files_goes_on_behind_appends_and_compactions_of_others(tmp_path):
    lake = Lake.open(tmp_path / "table", SCHEMA)
    lake.commit_files(laid(lake, ROWS.slice(0, 1)), "writer", {"topic/0": 1})
    Lake.open(tmp_path / "table").append(ROWS.slice(1, 1))
    DeltaTable(tmp_path / "table").optimize.compact()
    lake.commit_files(laid(lake, ROWS.slice(2, 1)), "writer", {"topic/0": 2})
    assert rows_of(tmp_path / "table") == ROWS.to_pylist()


def test_a_writer_that_another_passed_while_it_looked_is_not_sure_of_itself(tmp_path, monkeypatch):
    """The library does not say which version it made: what is seen next may be another's."""
    lake, other = (Lake.open(tmp_path / "table", SCHEMA) for _ in range(2))
    reload = Lake.reload

    def passed(self):
        monkeypatch.setattr(Lake, "reload", reload)
        other.positions("writer")
        other.commit_files([], "writer", {"topic/0": 9})
        reload(self)

    lake.positions("writer")
    monkeypatch.setattr(Lake, "reload", passed)
    lake.commit_files(laid(lake), "writer", {"topic/0": 3})
    with pytest.raises(ValueError, match="another process that appends as 'writer'"):
        lake.commit_files(laid(lake), "writer", {"topic/0": 6})


def test_a_column_that_the_table_lacks_is_an_error_that_names_it(tmp_path):
    lake = Lake.open(tmp_path / "table", SCHEMA)
    with pytest.raises(ValueError, match=r"columns: found \['more'\]"):
        laid(lake, ROWS.append_column("more", pa.array([1, 2, 3])))
