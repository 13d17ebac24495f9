"""Files: every format and place gives the same rows, and damage is named."""

import os
import tempfile
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from drivetrain.events import CSV, Arrow, JSONLines, Parquet
from drivetrain.events.reading.csv import SAMPLE
from drivetrain.events.reading.read import count, read

TEXT = 'id,name,score,at,ok\n1,"a, ""b""",0.5,2013-01-01T10:00:00Z,true\n2,NA,,2013-01-02,false\n'


def rows(leaf, columns=None, chunk=1000):
    schema = leaf.schema if columns is None else leaf.schema.select(columns)
    return [row for table in read(leaf, schema, chunk) for row in table.to_pylist()]


def dtypes(leaf):
    return {field.name: field.dtype for field in leaf.schema}


@pytest.fixture
def write(tmp_path):
    """``write(name, text)``: a file with that text; its path."""

    def make(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


@pytest.fixture
def memory():
    """An object store in memory, empty again afterwards."""
    store = fsspec.filesystem("memory")
    yield store
    store.rm("/bucket", recursive=True)


# -- formats and places ----------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["plain", "file", "memory", "zip", "glob"])
def test_every_place_gives_the_same_rows(write, memory, tmp_path, place):
    path = write("rows.csv", "a,b\n1,x\n2,y\n")
    memory.pipe("/bucket/rows.csv", path.read_bytes())
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.write(path, "rows.csv")
    url = {
        "plain": path,
        "file": f"file://{path}",
        "memory": "memory://bucket/rows.csv",
        "zip": f"zip://rows.csv::{tmp_path}/rows.zip",
        "glob": "memory://bucket/*.csv",
    }[place]
    assert rows(CSV(url)) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


def test_every_format_gives_the_same_rows(write, tmp_path):
    table = pa.table({"a": [1, None, 3], "b": ["x", "y", None], "c": [0.5, None, 1.0]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    feather.write_feather(table, tmp_path / "t.arrow")
    with pa.ipc.new_stream(tmp_path / "t.stream", table.schema) as writer:
        writer.write_table(table)
    lines = '{"a":1,"b":"x","c":0.5}\n{"b":"y"}\n{"a":3,"b":null,"c":1.0}\n'
    leaves = [
        Parquet(tmp_path / "t.parquet"),
        Arrow(tmp_path / "t.arrow"),
        Arrow(tmp_path / "t.stream"),
        JSONLines(write("t.jsonl", lines)),
        CSV(write("t.csv", "a,b,c\n1,x,0.5\n,y,NA\n3,,1.0\n")),
    ]
    for leaf in leaves:
        assert rows(leaf) == table.to_pylist(), leaf
        assert dtypes(leaf) == {"a": "int64", "b": "string", "c": "float64"}, leaf
    assert [count(leaf) for leaf in leaves] == [3, None, None, None, None]


def test_a_glob_is_read_in_order_of_name_and_a_list_as_given(write, tmp_path):
    for name, value in (("p-2.csv", 2), ("p-10.csv", 10), ("p-1.csv", 1)):
        write(name, f"a\n{value}\n")
    assert [row["a"] for row in rows(CSV(tmp_path / "p-*.csv"))] == [1, 10, 2]
    assert [row["a"] for row in rows(CSV([tmp_path / "p-2.csv", tmp_path / "p-1.csv"]))] == [2, 1]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(write):
    assert rows(CSV(write("part[1].csv", "a\n1\n"))) == [{"a": 1}]


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_chunks_are_even_whatever_the_files(tmp_path, chunk):
    for part, n in enumerate((4, 0, 9)):
        values = list(range(part * 10, part * 10 + n))
        table = pa.table({"a": pa.array(values, pa.int64())})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    leaf = Parquet(tmp_path / "*.parquet")
    sizes = [len(table) for table in read(leaf, leaf.schema, chunk)]
    assert sizes == [min(chunk, 13 - i) for i in range(0, 13, chunk)]
    assert [row["a"] for row in rows(leaf, chunk=chunk)] == [0, 1, 2, 3, *range(20, 29)]


def test_wide_rows_come_in_smaller_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("drivetrain.events.reading.read.BYTES", 1 << 16)
    table = pa.table({"image": [os.urandom(1 << 12) for _ in range(100)]})
    pq.write_table(table, tmp_path / "t.parquet", use_dictionary=False, row_group_size=50)
    leaf = Parquet(tmp_path / "t.parquet")
    sizes = [table.nbytes for table in read(leaf, leaf.schema, 100_000)]
    assert len(sizes) == 4
    assert max(sizes) <= 2 << 16


def test_timestamps_of_any_unit_and_zone_become_utc_microseconds(tmp_path):
    moment = pa.array([1_357_000_000], pa.int64())
    table = pa.table(
        {
            "s": moment.cast(pa.timestamp("s")),
            "ms": pa.array([1_357_000_000_000]).cast(pa.timestamp("ms", "America/New_York")),
            "ns": pa.array([1_357_000_000_000_000_999]).cast(pa.timestamp("ns", "UTC")),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet", version="2.6")
    (row,) = rows(Parquet(tmp_path / "t.parquet"))
    assert len(set(row.values())) == 1
    assert row["s"].isoformat() == "2013-01-01T00:26:40"


@pytest.mark.parametrize("unit", ["s", "ms"])
def test_a_time_that_microseconds_do_not_reach_is_an_error_and_no_other_time(tmp_path, unit):
    table = pa.table({"at": pa.array([0, 10**17], pa.timestamp(unit))})
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as out, pa.ipc.new_file(out, table.schema) as w:
        w.write_table(table)
    with pytest.raises(ValueError, match=r"t\.arrow, column 'at': found timestamp.* out of bounds"):
        rows(Arrow(tmp_path / "t.arrow"))


def test_types_of_other_tools_become_those_of_events(tmp_path):
    table = pa.table(
        {
            "small": pa.array([1], pa.int8()),
            "flag": [True],
            "half": pa.array([0.5], pa.float16()),
            "code": pa.array(["x"]).dictionary_encode(),
            "big": pa.array(["x"], pa.large_string()),
            "money": pa.array([1], pa.decimal128(5, 2)),
            "day": pa.array([15706], pa.date32()),
            "nested": [{"a": 1}],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    leaf = Parquet(tmp_path / "t.parquet")
    (row,) = rows(leaf)
    assert "nested" not in leaf.schema
    assert row.pop("day").isoformat() == "2013-01-01T00:00:00"
    assert row == {"small": 1, "flag": 1, "half": 0.5, "code": "x", "big": "x", "money": 1.0}


def test_nan_is_a_null_and_infinity_a_number(tmp_path):
    pq.write_table(pa.table({"a": [float("nan"), float("-inf"), 1.0]}), tmp_path / "t.parquet")
    values = [row["a"] for row in rows(Parquet(tmp_path / "t.parquet"))]
    assert values == [None, float("-inf"), 1.0]
    assert rows(CSV(_csv(tmp_path, "a\nnan\ninf\n1.5\n"))) == [
        {"a": None},
        {"a": float("inf")},
        {"a": 1.5},
    ]


def _csv(folder, text):
    path = folder / "t.csv"
    path.write_text(text)
    return path


# -- CSV and JSON ----------------------------------------------------------------------------------


def test_csv_types_are_told_from_the_text(write):
    text = (
        "i,f,s,t,z,b,code,none\n1,1,x,2013-01-01 10:00:00,2013-01-01T10:00:00+02:00,true,007,NA\n"
        "NA,1.5,,2013-01-02,NA,false,010,\n"
    )
    leaf = CSV(write("t.csv", text))
    assert dtypes(leaf) == {
        "i": "int64",
        "f": "float64",
        "s": "string",
        "t": "timestamp",
        "z": "timestamp",
        "b": "int64",
        "code": "string",
        "none": "string",
    }
    first, second = rows(leaf)
    assert first["z"].isoformat() == "2013-01-01T08:00:00"
    assert (first["b"], second["b"], first["code"]) == (1, 0, "007")
    assert (second["i"], second["s"], second["none"]) == (None, None, None)


def test_csv_column_that_begins_empty_gets_the_type_of_its_first_value(write):
    head = "a,b\n" + "1,\n" * (SAMPLE // 3 + 10)
    leaf = CSV(write("t.csv", head + "2,0.5\n"))
    assert dtypes(leaf) == {"a": "int64", "b": "float64"}
    *_, last = read(leaf, leaf.schema, 1000)
    assert last.to_pylist()[-1] == {"a": 2, "b": 0.5}


def test_csv_value_of_another_type_names_file_line_and_column(write):
    lines = SAMPLE // 4 + 100
    path = write("t.csv", "a,b\n" + "x,1\n" * lines + "x,1.5\n" + "x,1\n" * 10)
    leaf = CSV(path)
    assert dtypes(leaf) == {"a": "string", "b": "int64"}
    with pytest.raises(ValueError, match=rf"t.csv, line {lines + 2}, column 'b': found '1.5'"):
        rows(leaf, ["b"])
    declared = CSV(path, types={"b": "float64"})
    assert rows(declared, ["b"])[lines] == {"b": 1.5}


def test_csv_text_in_a_declared_number_is_an_error(write):
    leaf = CSV(write("t.csv", "a,b\n1,2\n3,oops\n"), types={"b": "int64"})
    with pytest.raises(ValueError, match=r"line 3, column 'b': found 'oops', .*as declared"):
        rows(leaf)


def test_csv_null_markers_are_the_users(write):
    leaf = CSV(write("t.csv", "a,b\n-,NA\n1,x\n"), null=("-",))
    assert rows(leaf) == [{"a": None, "b": "NA"}, {"a": 1, "b": "x"}]


def test_csv_values_may_hold_newlines_quotes_and_other_delimiters(write, monkeypatch):
    values = ['a\nb"c', "d;e", "\n\n", "plain"] * 30
    text = "v;n\n" + "".join(
        '"{}";{}\n'.format(value.replace('"', '""'), n) for n, value in enumerate(values)
    )
    path = write("t.csv", text)
    for size in (7, 64, 1 << 20):
        monkeypatch.setattr("drivetrain.events.reading.csv.BLOCK", size)
        monkeypatch.setattr("drivetrain.events.reading.csv.SAMPLE", 1 << 16)
        found = rows(CSV(path, delimiter=";"))
        assert [row["v"] for row in found] == values, size
        assert [row["n"] for row in found] == list(range(120))


def test_csv_with_a_header_alone_has_no_rows(write):
    assert rows(CSV(write("t.csv", "a,b\n"))) == []
    assert dtypes(CSV(write("t.csv", "a,b\n"), types={"a": "int64"})) == {
        "a": "int64",
        "b": "string",
    }


def test_a_column_without_a_name_as_above_the_index_of_pandas_is_one_like_others(write):
    table = CSV(write("t.csv", ",a\n0,x\n1,y\n"))
    assert table.schema.names == ("", "a")
    splits = ("train", "validate", "test")
    found = [row for split in splits for part in table.batches(split) for row in part.rows()]
    assert sorted(row[""] for row in found) == [0, 1]
    assert table.rename(row="").drop("a").schema.names == ("row",)


def test_json_lines_take_declared_types_and_columns_that_come_late(write):
    leaf = JSONLines(
        write("t.jsonl", '{"a":1,"at":"2013-01-01T10:00:00"}\n{"a":2.5,"late":"x"}\n'),
        types={"a": "float64"},
    )
    found = rows(leaf)
    assert [row["a"] for row in found] == [1.0, 2.5]
    assert found[0]["at"].isoformat() == "2013-01-01T10:00:00"
    assert found[1]["late"] == "x"


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Parquet, CSV, JSONLines, Arrow])
def test_absent_files_are_named(tmp_path, kind):
    with pytest.raises(FileNotFoundError, match=r"none\.x: there is no such file"):
        _ = kind(tmp_path / "none.x").schema
    with pytest.raises(FileNotFoundError, match=r"\*\.x: matches no file"):
        _ = kind(tmp_path / "*.x").schema
    with pytest.raises(FileNotFoundError, match="memory://none/x"):
        _ = kind("memory://none/x").schema


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="a file, or a glob"):
        _ = Parquet(tmp_path).schema


@pytest.mark.parametrize("kind", [Parquet, CSV, JSONLines, Arrow])
def test_an_empty_file_is_named(write, kind):
    with pytest.raises(ValueError, match=r"empty\.x: found an empty file"):
        _ = kind(write("empty.x", "")).schema


@pytest.mark.parametrize("cut", [-3, 100, 4])
def test_torn_parquet_is_named(write, tmp_path, cut):
    pq.write_table(pa.table({"a": list(range(1000))}), tmp_path / "whole.parquet")
    data = (tmp_path / "whole.parquet").read_bytes()
    with pytest.raises(ValueError, match=r"torn\.parquet: cannot be read, it is torn"):
        _ = Parquet(write("torn.parquet", data[:cut])).schema


def test_parquet_with_damaged_pages_is_named_when_they_are_read(write, tmp_path):
    pq.write_table(pa.table({"a": list(range(9000))}), tmp_path / "whole.parquet")
    data = bytearray((tmp_path / "whole.parquet").read_bytes())
    data[60:400] = bytes(340)
    leaf = Parquet(write("torn.parquet", bytes(data)))
    with pytest.raises(ValueError, match=r"torn\.parquet: cannot be read, it is torn"):
        rows(leaf)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (CSV, "a,b\n1,2\n3\n", r"t\.x, in or after line 2: cannot be read as CSV.*Expected 2"),
        (CSV, "a,a\n1,2\n", "found column 'a' twice"),
        (CSV, b"a\n\xff\xfe\n", "invalid UTF8"),
        (JSONLines, '{"a":1}\n{"a":\n', "line 2: JSON parse error"),
        (Arrow, b"ARROW1\0\0" + bytes(100), "torn"),
        (Arrow, "hello", "torn"),
    ],
)
def test_other_damage_is_named(write, kind, text, message):
    with pytest.raises(ValueError, match=message):
        rows(kind(write("t.x", text)))


def test_json_value_of_another_type_names_the_line(write):
    leaf = JSONLines(write("t.jsonl", '{"a":1}\n{"a":"x"}\n'), types={"a": "int64"})
    with pytest.raises(ValueError, match=r"t\.jsonl, line 2: .*from number to string"):
        rows(leaf)


def test_torn_archive_is_named(write, tmp_path):
    with zipfile.ZipFile(tmp_path / "whole.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.csv", "a\n" + "1\n" * 100_000)
    data = bytearray((tmp_path / "whole.zip").read_bytes())
    data[60:90] = b"\xff" * 30
    write("torn.zip", bytes(data))
    leaf = CSV(f"zip://t.csv::{tmp_path}/torn.zip", types={"a": "int64"})
    with pytest.raises(ValueError, match=r"torn\.zip: cannot be read"):
        rows(leaf)


def test_files_of_one_table_have_the_columns_and_types_of_the_first(write, tmp_path):
    write("1.csv", "a,b\n1,2\n")
    write("2.csv", "b,a\n3,4\n")
    assert rows(CSV(tmp_path / "[12].csv")) == [{"a": 1, "b": 2}, {"a": 4, "b": 3}]
    write("3.csv", "a,bb\n1,2\n")
    with pytest.raises(ValueError, match=r"unknown column 'b' in .*3\.csv. Did you mean 'bb'"):
        rows(CSV(tmp_path / "*.csv"))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": [1.5]}), tmp_path / "2.parquet")
    with pytest.raises(ValueError, match=r"2\.parquet, column 'a': found double"):
        rows(Parquet(tmp_path / "*.parquet"))


def test_declared_column_that_is_not_there_suggests_the_nearest(write):
    path = write("t.csv", "distance\n1\n")
    with pytest.raises(ValueError, match=r"CSV.types for .*Did you mean 'distance'"):
        _ = CSV(path, types={"distnce": "int64"}).schema
    with pytest.raises(ValueError, match=r"CSV time\. Did you mean 'distance'"):
        _ = CSV(path, time="distanc").schema
    with pytest.raises(ValueError, match="Did you mean 'int64'"):
        CSV(path, types={"distance": "int"})
    with pytest.raises(ValueError, match="one character"):
        CSV(path, delimiter="::")


@pytest.fixture
def nobody():
    """The eyes of a user who may do little: root itself may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


@pytest.fixture
def secrets():
    """A folder in which one file, and all within another folder, may not be read."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        Path(folder, "hidden").mkdir()
        for path in (Path(folder, "secret.csv"), Path(folder, "hidden", "file.csv")):
            path.write_text("a\n1\n")
        Path(folder, "secret.csv").chmod(0)
        Path(folder, "hidden").chmod(0)
        yield Path(folder)
        Path(folder, "hidden").chmod(0o755)


def test_a_file_that_may_not_be_read_is_named(request, secrets):
    if os.geteuid() == 0:  # nobody may not import what root has not imported yet
        assert rows(CSV(secrets / "secret.csv")) == [{"a": 1}]
        os.utime(secrets / "secret.csv", (0, 0))
    request.getfixturevalue("nobody")
    with pytest.raises(PermissionError, match=r"secret\.csv"):
        _ = CSV(secrets / "secret.csv").schema
    with pytest.raises(PermissionError, match=r"hidden/file\.csv"):
        _ = CSV(secrets / "hidden" / "file.csv").schema


def test_a_changed_file_is_looked_at_again(write):
    leaf = CSV(write("t.csv", "a\n1\n"))
    assert leaf.schema.names == ("a",)
    write("t.csv", "bb\n1\n")
    assert leaf.schema.names == ("bb",)
