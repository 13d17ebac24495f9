"""Delta tables as a source: any version's rows, in one order, whatever wrote them."""

import json
import string
import struct
import time
from datetime import datetime

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

import drivetrain as dt
from drivetrain.core.describe import describe
from drivetrain.core.schema import Field
from drivetrain.events.delta import Delta
from drivetrain.events.known import known_schema
from drivetrain.events.lake.lake import Lake
from drivetrain.events.prepared import Prepared, fingerprint, held, pin, prepare

MICROSECOND = pa.timestamp("us")


def rows_of(leaf, names=None, most=1000):
    schema = leaf.schema.select(names or leaf.schema.names)
    return pa.concat_tables(leaf.chunks(schema, most)).to_pylist()


def some(start=0, count=3, **more):
    numbers = np.arange(start, start + count)
    return pa.table({"n": numbers, "at": pa.array(numbers, MICROSECOND), **more})


def test_every_type_of_column_comes_back_as_it_went_in(path):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(range(8), pa.float32()), 2)
    matrices = pa.FixedSizeListArray.from_arrays(vectors, 2)
    columns = {
        "s": ["a", None],
        "b": [b"\x00", None],
        "i": pa.array([2**63 - 1, None]),
        "f": pa.array([0.5, None], pa.float32()),
        "d": pa.array([float("inf"), float("nan")]),
        "t": pa.array([-1, None], MICROSECOND),
        "v": vectors[:2],
        "m": matrices,
        "w": pa.FixedSizeListArray.from_arrays(pa.array(["a", None, "", "ü"]), 2),
    }
    Lake.open(path).append(pa.table(columns))
    leaf = Delta(path, time="t")
    assert leaf.schema.fields == (
        Field("s", "string"),
        Field("b", "bytes"),
        Field("i", "int64"),
        Field("f", "float32"),
        Field("d", "float64"),
        Field("t", "timestamp"),
        Field("v", "float32", (2,)),
        Field("m", "float32", (2, 2)),
        Field("w", "string", (2,)),
    )
    first, second = rows_of(leaf)
    before = datetime(1969, 12, 31, 23, 59, 59, 999999)
    assert list(first.values())[:6] == ["a", b"\x00", 2**63 - 1, 0.5, float("inf"), before]
    assert first["v"] == [0, 1]
    assert second["m"] == [[4, 5], [6, 7]]
    assert [first["w"], second["w"]] == [["a", None], ["", "ü"]]
    assert {name for name, value in second.items() if value is None} == {
        "s",
        "b",
        "i",
        "f",
        "d",
        "t",
    }


def test_times_with_a_zone_become_utc_and_narrow_numbers_widen(path):
    at = pa.array([datetime(2026, 3, 1, 12)], MICROSECOND).cast(pa.timestamp("us", "UTC"))
    narrow = {"small": pa.array([7], pa.int16()), "yes": [True], "day": pa.array([1], pa.date32())}
    write_deltalake(path, pa.table({"at": at, "local": at.cast(MICROSECOND), **narrow}))
    leaf = Delta(path)
    assert [field.dtype for field in leaf.schema] == [
        *["timestamp"] * 2, "int64", "int64", "timestamp"
    ]  # fmt: skip
    (row,) = rows_of(leaf)
    assert row["at"] == row["local"] == datetime(2026, 3, 1, 12)
    assert (row["small"], row["yes"], row["day"]) == (7, 1, datetime(1970, 1, 2))


def commits(path, count, rows=4):
    """Commits of ``rows`` rows each, no two of them in one millisecond."""
    for number in range(count):
        write_deltalake(path, some(number * rows, rows), mode="append")
        written = time.time_ns() // 10**6
        while time.time_ns() // 10**6 == written:
            pass


def test_rows_come_in_order_of_commits_in_chunks_of_any_size(path):
    commits(path, 10)
    leaf = Delta(path)
    assert leaf.count() == 40
    for most in (1, 3, 7, 100):
        chunks = list(leaf.chunks(leaf.schema.select(("n",)), most))
        assert max(map(len, chunks)) <= most
        assert pa.concat_tables(chunks)["n"].to_pylist() == list(range(40))


def test_a_compacted_version_has_the_same_rows_in_one_order_and_another_stamp(path):
    commits(path, 10)
    before = Delta(path).stamps()
    assert Lake.open(path).compact().removed == 10
    found = [row["n"] for row in rows_of(Delta(path), ("n",))]
    assert sorted(found) == list(range(40))
    assert found == [row["n"] for row in rows_of(Delta(path), most=3)]
    assert all(found[i : i + 4] == list(range(found[i], found[i] + 4)) for i in range(0, 40, 4))
    assert Delta(path).stamps() != before


def test_an_earlier_version_gives_its_rows_until_it_is_vacuumed(path):
    commits(path, 3)
    lake = Lake.open(path)
    lake.compact()
    assert [row["n"] for row in rows_of(Delta(path, version=1), ("n",))] == list(range(8))
    assert len(lake.vacuum(0, guard=False)) == 3
    assert len(rows_of(Delta(path))) == 12
    with pytest.raises(FileNotFoundError, match=r"version 1 was vacuumed, part-.* no longer there"):
        rows_of(Delta(path, version=1))


def test_a_version_or_a_table_that_is_not_there_is_named(path):
    commits(path, 1)
    with pytest.raises(
        FileNotFoundError, match="orders: its log has no version 7, the latest is 0"
    ):
        Delta(path, version=7).count()
    with pytest.raises(FileNotFoundError, match="absent: there is no Delta table"):
        Delta(path.parent / "absent").count()
    with pytest.raises(ValueError, match=r"Delta.version: found -1"):
        Delta(path, version=-1)
    with pytest.raises(ValueError, match=r"unknown column 'att' in Delta time. Did you mean 'at'"):
        _ = Delta(path, time="att").schema


def test_values_of_partitions_are_columns_also_alone_and_odd_ones(path):
    values = ["a b", "ü/x%20=1", None, "plain"]
    write_deltalake(path, some(0, 4, k=values, w=pa.array([1, 2, 3, 4])), partition_by=["k", "w"])
    leaf = Delta(path)
    assert leaf.schema.field("k").dtype == "string"
    assert leaf.schema.field("w").dtype == "int64"
    found = {row["n"]: (row["k"], row["w"]) for row in rows_of(leaf)}
    assert found == dict(enumerate(zip(values, (1, 2, 3, 4), strict=True)))
    assert sorted(row["w"] for row in rows_of(leaf, ("w",))) == [1, 2, 3, 4]


def test_columns_that_came_later_are_null_before(path):
    lake = Lake.open(path)
    lake.append(some(0, 2))
    lake.append(some(2, 2, note=["x", "y"]))
    assert [row["note"] for row in rows_of(Delta(path))] == [None, None, "x", "y"]


def test_columns_of_nested_types_are_left_out_as_in_files(path):
    write_deltalake(path, some(0, 2, deep=pa.array([{"a": 1}, None]), more=[[1], [2, 3]]))
    assert Delta(path).schema.names == ("n", "at")
    assert len(rows_of(Delta(path))) == 2


def test_columns_under_other_names_in_the_files_are_refused(path):
    names, mapped = pa.schema([("n", pa.int64())]), {"delta.columnMapping.mode": "name"}
    DeltaTable.create(path, names, configuration=mapped, raise_if_key_not_exists=False)
    with pytest.raises(ValueError, match=r"orders, delta.columnMapping.mode: found 'name'"):
        Delta(path).count()


def test_a_table_that_may_have_deletion_vectors_is_read_while_it_has_none(path):
    names, allowed = pa.schema([("n", pa.int64())]), {"delta.enableDeletionVectors": "true"}
    DeltaTable.create(path, names, configuration=allowed, raise_if_key_not_exists=False)
    write_deltalake(path, pa.table({"n": [1]}), mode="append")
    assert rows_of(Delta(path)) == [{"n": 1}]


def z85(data):
    """Bytes as the text of ZeroMQ's RFC 32, as logs have a short deletion vector."""
    digits = string.digits + string.ascii_lowercase + string.ascii_uppercase
    digits += ".-:+=^!/*?&<>()[]{}@%$#"
    words = struct.unpack(f">{len(data) // 4}I", data)
    return "".join(digits[word // 85**power % 85] for word in words for power in (4, 3, 2, 1, 0))


def test_a_deletion_vector_is_refused(path):
    commits(path, 1)
    # As an engine deletes the row 1 that keeps its file: this library reads such logs only.
    bitmap = struct.pack("<IIHHIH", 12346, 1, 0, 0, 16, 1)
    vector = struct.pack("<IQI", 1681511377, 1, 0) + bitmap
    inline = {"storageType": "i", "pathOrInlineDv": z85(vector + bytes(-len(vector) % 4))}
    features = ["deletionVectors", "timestampNtz"]
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7}
    protocol |= {"readerFeatures": features, "writerFeatures": features}
    log = path / "_delta_log"
    commit = map(json.loads, (log / f"{0:020}.json").read_text().splitlines())
    (add,) = (action["add"] for action in commit if "add" in action)
    gone = {key: add[key] for key in ("path", "partitionValues", "size")}
    gone |= {"deletionTimestamp": add["modificationTime"], "dataChange": True}
    add["deletionVector"] = {**inline, "sizeInBytes": len(vector), "cardinality": 1}
    lines = map(json.dumps, ({"protocol": protocol}, {"remove": gone}, {"add": add}))
    (log / f"{1:020}.json").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="found deletion vectors, which leave rows"):
        Delta(path).count()
    assert len(rows_of(Delta(path, version=0))) == 4


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hunter2@bucket/table",
        "s3://AKIA@bucket/table",
        "https://host/table?sig=hunter2",
        "abfss://files:hunter2@account.dfs.core.windows.net/table",
    ],
)
def test_a_path_with_a_secret_is_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="credentials or options in it") as raised:
        Delta(url)
    assert "hunter2" not in str(raised.value)
    assert "AKIA" not in str(raised.value)
    with pytest.raises(ValueError, match=r"Lake.open path: found a URL with credentials"):
        Lake.open(url)
    assert Delta("abfss://files@account.dfs.core.windows.net/table").url.startswith("abfss")


def test_a_declaration_knows_the_table_and_not_where_this_machine_keeps_it(path, tmp_path):
    assert describe(Delta(path))["path"] == "orders"
    assert describe(Delta("s3://lake/orders"))["path"] == "s3://lake/orders"
    assert describe(Delta("here/orders"))["path"] == "here/orders"


def test_a_pinned_table_stays_at_the_version_that_it_had(path):
    commits(path, 1)
    table = (
        Delta(path, time="at").where(dt.col("n") >= 0).join(Delta(path).rename(m="n"), {"n": "m"})
    )
    pinned, files = pin(table), dt.Parquet("x.parquet").drop_nulls()
    assert pin(files) is files
    assert pin(pinned) is pinned
    commits(path, 2)
    assert pinned.time == "at"
    assert pinned.chain()[0].count() == 4
    assert table.chain()[0].count() == 12
    assert fingerprint(pinned) != fingerprint(pin(table))
    assert fingerprint(pinned) == fingerprint(pin(pinned))


def test_prepared_rows_know_the_versions_that_they_came_from(path, tmp_path):
    commits(path, 2)
    table = Delta(path).join(Delta(path, version=0).rename(m="n").drop("at"), {"n": "m"})
    ready = prepare(table.split(dt.HashSplit(columns=("n",))), ("n",), tmp_path / "ready")
    due = ({"table": "orders", "version": 1}, {"table": "orders", "version": 0})
    assert ready.sources == due
    assert Prepared.open(tmp_path / "ready").sources == due


def test_the_schema_of_an_unchanged_local_table_is_not_read_again(path, tmp_path, monkeypatch):
    commits(path, 1)
    room = tmp_path / "room"
    assert known_schema(Delta(path), room).names == ("n", "at")
    with monkeypatch.context() as patched:
        patched.setattr("drivetrain.events.lake.snapshot.Snapshot.open", None)
        assert known_schema(Delta(path), room).names == ("n", "at")
    Lake.open(path).append(some(9, 1, more=["x"]))
    assert known_schema(Delta(path), room).names == ("n", "at", "more")
    assert Delta(path, version=0).local_stamps()[0][0].endswith("0.json")
    assert Delta("s3://lake/orders").local_stamps() is None
    assert Delta(path.parent / "absent").local_stamps() is None


def test_duckdb_reads_the_rows_that_the_leaf_gives(path):
    import duckdb

    lake = Lake.open(path, partition_by=("day(at)",))
    for start in range(0, 30, 10):
        lake.append(some(start, 10, s=[None, *"abcdefghi"]))
    files = DeltaTable(path).file_uris()
    with duckdb.connect() as connection:
        relation = connection.read_parquet(files, hive_partitioning=True)
        found = relation.project('n, epoch_us("at"), s, CAST(at_day AS VARCHAR)').fetchall()
    epoch = datetime(1970, 1, 1)
    due = [
        (row["n"], (row["at"] - epoch).microseconds, row["s"], row["at_day"])
        for row in rows_of(Delta(path))
    ]
    assert sorted(found) == sorted(due)


@pytest.mark.slow
def test_a_bundle_names_the_version_that_it_was_trained_on(tmp_path, make_events, site):
    from drivetrain.core.bundle import Bundle
    from drivetrain.models import MLP
    from drivetrain.pipeline import run
    from drivetrain.watch.show import html, plain, text

    lake = Lake.open(tmp_path / "payments")
    lake.append(make_events(600))
    system = dt.System(
        name="made",
        events=Delta(tmp_path / "payments", time="at").split(
            dt.TimeSplit(validate="2024-07-01", test="2024-09-01")
        ),
        features=(dt.Scale("amount"),),
        model=MLP(hidden=(2,)),
        targets=("bad",),
        train=dt.Single(loss=dt.BinaryCrossEntropy("bad"), epochs=1, batch_size=300),
    )
    first = run(system, site)
    assert first is not None
    assert first.manifest.sources == ({"table": "payments", "version": 1},)
    assert Bundle.open(first.path).manifest == first.manifest
    again = run(system, site)
    assert again is not None
    assert again.digest == first.digest
    lake.append(make_events(600, seed=1))
    later = run(system, site)
    assert later is not None
    assert later.manifest.sources == ({"table": "payments", "version": 2},)
    assert later.digest != first.digest
    drawn = plain(later.manifest.system, manifest=later.manifest, digest=later.digest)
    assert 'sources\n  table "payments", version 2' in text(drawn)
    assert "table &quot;payments&quot;, version 2" in html(drawn)
    assert str(tmp_path) not in str(later.manifest.to_json())


def test_processes_that_start_late_follow_the_rows_that_the_first_one_held(path, tmp_path):
    commits(path, 1)
    table, room = Delta(path).split(dt.HashSplit(columns=("n",))), tmp_path / "events"
    first, directory = held(table, ("n",), room)
    prepare(first, ("n",), directory)
    commits(path, 1)
    assert held(table, ("n",), room, follow=True)[1] == directory
    assert held(table, ("at",), room, follow=True)[1] != directory
    assert held(table, ("n",), room)[1] != directory
    assert held(table, ("n",), room, follow=True)[1] != directory
    made = sorted(item.suffix for item in room.iterdir())
    assert made == ["", ".json", ".json"]
    held(dt.Parquet(str(next(path.glob("*.parquet")))), ("n",), room)
    assert len(list(room.iterdir())) == len(made), "files leave no note"
