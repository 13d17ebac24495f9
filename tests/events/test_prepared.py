"""Prepared rows: whole or absent, the same bytes each time, every row once."""

import errno
import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.batch import Batch, Categorical
from drivetrain.core.describe import describe
from drivetrain.core.metric import Metric, Note, Progress
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.seams import SPLITS, Shard, Tabular
from drivetrain.events import (
    CSV,
    HashSplit,
    Parquet,
    Prepared,
    TimeSplit,
    col,
    fingerprint,
    prepare,
)
from drivetrain.events.prepared import find
from drivetrain.events.shelf import ColumnDigest

NAMES = ("n", "x", "s", "b", "t", "v", "w")


@pytest.fixture
def made(tmp_path):
    """Made rows of every type, with nulls, as a table split by a key."""
    rng = np.random.default_rng(0)
    n = 3_000
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=2 * n), pa.float32()), 2)
    words = pa.array([None if i % 5 == 0 else f"w{i % 11}" for i in range(3 * n)])
    table = pa.table(
        {
            "n": pa.array(np.arange(n), mask=rng.random(n) < 0.1),
            "x": pa.array(rng.normal(size=n), mask=rng.random(n) < 0.1),
            "s": pa.array(rng.choice(["a", "b", "longer"], n), mask=rng.random(n) < 0.1),
            "b": pa.array([bytes([i % 7]) for i in range(n)]),
            "t": pa.array(np.arange(n) * 3_600_000_000, pa.timestamp("us")),
            "v": vectors,
            "w": pa.FixedSizeListArray.from_arrays(words, 3, mask=pa.array(np.arange(n) % 7 == 0)),
            "key": np.arange(n) // 3,
        }
    )
    pq.write_table(table, tmp_path / "made.parquet", row_group_size=700)
    return Parquet(tmp_path / "made.parquet", time="t").split(HashSplit(columns=("key",)))


@pytest.fixture
def small_groups(monkeypatch):
    """Row groups of 100 rows and files of 300, so that few rows make many."""
    monkeypatch.setattr("drivetrain.events.shelf.GROUP_ROWS", 100)
    monkeypatch.setattr("drivetrain.events.shelf.FILE_ROWS", 300)


def whole(source, split, shard=Shard()):
    parts = list(source.batches(split, shard))
    return [row for part in parts for row in part.select(source.schema.names).rows()]


def same(a, b):
    return str(a) == str(b)  # NaN equals NaN here


def test_prepared_rows_are_the_rows_of_the_table(made, tmp_path, small_groups):
    ready = prepare(made, NAMES, tmp_path / "ready")
    assert isinstance(ready, Tabular)
    assert ready.schema == made.schema.select(NAMES)
    chosen = made.select(*NAMES, "key")
    for split in SPLITS:
        due = [{name: row[name] for name in NAMES} for row in whole(chosen, split)]
        assert same(whole(ready, split), due)
        assert ready.rows(split) == len(due) > 0
        assert sum(pq.read_metadata(f).num_rows for f in ready.files(split)) == len(due)
    assert len(ready.files("train")) > 1
    assert pq.ParquetFile(ready.files("train")[0]).metadata.row_group(0).num_rows == 100
    assert isinstance(next(ready.batches("train")).column("s"), Categorical)


def test_prepared_bytes_and_digest_are_the_same_again(made, tmp_path):
    def content(directory):
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        return [(f.name, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]

    first = prepare(made, NAMES, tmp_path / "one", threads=1)
    again = prepare(made, NAMES, tmp_path / "two", threads=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert first.digest == again.digest


def test_digest_follows_the_rows_not_the_files(made, tmp_path, monkeypatch):
    before = prepare(made, NAMES, tmp_path / "one")
    monkeypatch.setattr("drivetrain.events.shelf.GROUP_ROWS", 70)
    after = prepare(made, NAMES, tmp_path / "two")
    assert before.digest == after.digest
    changed = prepare(made.where(col("key") != 5), NAMES, tmp_path / "three")
    assert changed.digest != before.digest
    moved = prepare(
        made.source.split(HashSplit(columns=("key",), seed=1)), NAMES, tmp_path / "four"
    )
    assert moved.digest != before.digest


def test_selected_columns_have_the_digest_of_those_prepared_alone(made, tmp_path):
    ready = prepare(made, NAMES, tmp_path / "all").select(("s", "n"))
    alone = prepare(made, ("s", "n"), tmp_path / "two")
    assert ready.digest == alone.digest
    assert ready.schema.names == ("s", "n")
    assert list(next(ready.batches("test")).columns) == ["s", "n"]
    with pytest.raises(ValueError, match="unknown column 'nn'"):
        ready.select(("nn",))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
    st.lists(st.integers(0, 10), max_size=4),
)
def test_column_digest_does_not_depend_on_the_pieces(values, cuts):
    column = pa.array(values, pa.string())
    bounds = sorted({0, len(values), *(c for c in cuts if c < len(values))})
    pieces = [column.slice(a, b - a) for a, b in itertools.pairwise(bounds)]
    one, many = ColumnDigest(Field("c", "string")), ColumnDigest(Field("c", "string"))
    one.update(pa.chunked_array([column]))
    many.update(pa.chunked_array(pieces, pa.string()))
    assert one.hexdigest() == many.hexdigest()


@pytest.mark.parametrize("count", [1, 2, 3, 64, 700])
def test_shards_are_even_and_hold_every_row_once(made, tmp_path, small_groups, count):
    ready = prepare(made, ("n", "x"), tmp_path / "ready")
    shards = [whole(ready, "test", Shard(i, count)) for i in range(count)]
    assert same([row for shard in shards for row in shard], whole(ready, "test"))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    with pytest.raises(ValueError, match="shard"):
        next(ready.batches("test", Shard(count, count)))


def test_batches_are_whole_row_groups(made, tmp_path, small_groups):
    ready = prepare(made, ("n",), tmp_path / "ready")
    sizes = [len(batch) for batch in ready.batches("train")]
    assert set(sizes[:-1]) == {100}


def test_opening_gives_what_preparing_gave_and_preparing_again_reads_nothing(made, tmp_path):
    ready = prepare(made, NAMES, tmp_path / "ready")
    assert Prepared.open(tmp_path / "ready") == ready
    (tmp_path / "made.parquet").unlink()
    assert prepare(made, NAMES, tmp_path / "ready") == ready


def test_what_is_left_out_is_counted_and_said(made, tmp_path):
    told = []
    cleaned = made.where(col("key") >= 100).drop_nulls("x").where(col("n") < -1)
    rest = made.where(col("key") >= 100).drop_nulls("x")
    ready = prepare(rest, ("n",), tmp_path / "ready", emit=told.append)
    notes = [item.text for item in told if isinstance(item, Note)]
    assert notes[0] == "where(col('key') >= 100): 300 of 3,000 rows left out"
    assert notes[1].startswith("drop_nulls('x'): ")
    metrics = {item.name: item.value for item in told if isinstance(item, Metric)}
    assert metrics["events/rows"] == sum(ready.rows(split) for split in SPLITS)
    assert metrics["events/train_rows"] == ready.rows("train")
    assert metrics["events/read_rows"] == 3_000
    last = [item for item in told if isinstance(item, Progress)][-1]
    assert (last.done, last.total) == (3_000, 3_000)
    with pytest.raises(ValueError, match=r"found 0 rows of 3,000 left .*where\(col\('n'\) < -1\)"):
        prepare(cleaned, ("n",), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_empty_split_is_a_warning_and_reads_as_no_rows(made, tmp_path):
    told = []
    late = made.source.split(TimeSplit(validate="1999-01-01", test="1999-01-01"))
    ready = prepare(late, ("n",), tmp_path / "ready", emit=told.append)
    warned = [item.text for item in told if isinstance(item, Note) and item.warning]
    assert warned == ["the split validate has no rows", "the split test has no rows"]
    assert list(ready.batches("test")) == []
    with pytest.raises(ValueError, match=r"unknown split 'tset'\. Did you mean 'test'"):
        ready.rows("tset")


def test_rows_are_found_by_their_digest_once_they_are_whole(made, tmp_path):
    ready = prepare(made, ("n",), tmp_path / "room" / "ready")
    assert find(tmp_path / "room", ready.digest) == ready
    ready.directory.rename(tmp_path / "room" / ".ready.tmp")
    assert find(tmp_path / "room", ready.digest) is None


def test_any_source_can_be_prepared(tmp_path):
    class Made:
        schema = Schema((Field("n", "int64"), Field("s", "string"), Field("t", "timestamp")))

        def batches(self, split, shard=Shard()):
            if split != "test":
                n = np.array([1, MISSING_INT], dtype=np.int64)
                s = np.array(["x", ""], dtype=object)
                yield Batch({"n": n, "s": s, "t": n})

    ready = prepare(Made(), ("s", "n", "t"), tmp_path / "ready")
    assert whole(ready, "train") == [
        {"s": "x", "n": 1, "t": 1},
        {"s": "", "n": MISSING_INT, "t": MISSING_INT},
    ]
    assert pq.read_table(ready.files("train")[0])["n"].null_count == 1
    assert ready.rows("test") == 0


# -- bad input -------------------------------------------------------------------------------------


def test_wrong_columns_leave_nothing(made, tmp_path):
    with pytest.raises(ValueError, match="unknown column 'nn'"):
        prepare(made, ("nn",), tmp_path / "store" / "ready")
    with pytest.raises(ValueError, match="at least one column"):
        prepare(made, (), tmp_path / "store" / "ready")
    with pytest.raises(ValueError, match="memory: found 'much'"):
        prepare(made, ("n",), tmp_path / "store" / "ready", memory="much")
    assert not list(tmp_path.glob("store/*"))


def test_an_error_in_the_middle_leaves_nothing(tmp_path):
    text = "a\n" + "1\n" * 200_000 + "oops\n"
    (tmp_path / "t.csv").write_text(text)
    table = CSV(tmp_path / "t.csv", types={"a": "string"}).with_columns(b=col("a").cast("int64"))
    with pytest.raises(ValueError, match=r"with_columns\(b=.*'oops'"):
        prepare(table, ("b",), tmp_path / "store" / "ready")
    assert list((tmp_path / "store").iterdir()) == []


def test_a_full_disk_leaves_the_store_as_it_was(made, tmp_path, monkeypatch, small_groups):
    kept = prepare(made, ("n",), tmp_path / "store" / "first").digest
    write = pq.ParquetWriter.write_table
    written = []

    def full(self, *args, **kwargs):
        written.append(1)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space left") as caught:
        prepare(made, NAMES, tmp_path / "store" / "second")
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["first"]
    assert Prepared.open(tmp_path / "store" / "first").digest == kept


def test_torn_prepared_rows_are_refused(made, tmp_path):
    ready = prepare(made, ("n",), tmp_path / "ready")
    part = Path(ready.files("train")[0])
    data = part.read_bytes()
    part.write_bytes(data[:-10])
    with pytest.raises(ValueError, match=r"part-00000\.parquet: found it absent or torn"):
        Prepared.open(tmp_path / "ready")
    with pytest.raises(ValueError, match="prepare it anew"):
        list(ready.batches("train"))
    part.write_bytes(data)
    manifest = tmp_path / "ready" / "prepared.json"
    text = manifest.read_text()
    manifest.write_text(text[:100])
    with pytest.raises(ValueError, match="whole manifest"):
        Prepared.open(tmp_path / "ready")
    manifest.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(ValueError, match="format: found 99"):
        Prepared.open(tmp_path / "ready")


def test_fingerprint_changes_with_the_declaration_and_with_any_file(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("k,v\n1,2\n")

    def table(limit=0):
        other = CSV(tmp_path / "b.csv").rename(w="v")
        return CSV(tmp_path / "a.csv").join(other, on="k").where(col("v") > limit)

    first = fingerprint(table())
    assert fingerprint(table()) == first
    assert fingerprint(table(1)) != first
    (tmp_path / "b.csv").write_text("k,v\n1,22\n")
    assert fingerprint(table()) != first
    (tmp_path / "b.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.csv"):
        fingerprint(table())


def test_a_declaration_says_nothing_of_the_machine_and_a_fingerprint_does(tmp_path):
    for folder in ("home", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.csv").write_text("k,v\n1,2\n")
    one, other = (CSV(tmp_path / folder / "a.csv") for folder in ("home", "other"))
    assert describe(one) == describe(other)
    assert fingerprint(one) != fingerprint(other)
    paths = ("zip://a.csv::/home/me/a.zip", "data/*.csv", "s3://lake/a.csv", "file:///home/me/b")
    assert describe(CSV(paths))["paths"] == ["zip://a.csv::a.zip", *paths[1:3], "b"]


# -- the real flights, and memory ------------------------------------------------------------------


def test_flights_of_autumn_validate_and_cancelled_ones_are_counted(flights, tmp_path):
    told = []
    table = (
        CSV(f"zip://flights.csv::{flights}/flights.csv.zip", time="time_hour")
        .where(col("arr_delay").is_not_null())
        .with_columns(late=col("arr_delay") > 15)
        .split(TimeSplit(validate="2013-10-01", test="2013-11-01"))
    )
    ready = prepare(table, ("late", "month", "origin"), tmp_path / "ready", emit=told.append)
    notes = [item.text for item in told if isinstance(item, Note)]
    assert notes == ["where(col('arr_delay').is_not_null()): 9,430 of 336,776 rows left out"]
    assert sum(ready.rows(split) for split in SPLITS) == 327_346
    months = {s: {m for b in ready.batches(s) for m in b["month"].tolist()} for s in SPLITS}
    # the stamps are UTC: the last evening of a month in New York is the next month already
    assert months == {"train": set(range(1, 10)), "validate": {9, 10}, "test": {10, 11, 12}}


MEASURE = """
import sys
from pathlib import Path
from drivetrain.events import HashSplit, Parquet, col, prepare

folder, files = Path(sys.argv[1]), int(sys.argv[2])
other = Parquet(folder / "other.parquet")
table = (
    Parquet([folder / f"rows-{i % 8}.parquet" for i in range(files)])
    .where(col("x").is_not_null())
    .with_columns(y=col("x") * 2, half=col("k") // 2)
    .join(other, on="k")
    .join_asof(other, time=("t", "w"), by="k", suffix="_then")
    .split(HashSplit(columns=("k",)))
)
ready = prepare(table, ("x", "y", "s", "v", "v_then"), folder / f"ready-{files}", threads=1)
print(sum(ready.rows(s) for s in ("train", "validate", "test")))
# not ru_maxrss, which remembers the peak of the process that started this one
status = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    rng = np.random.default_rng(0)
    n, keys = 250_000, 1_000
    for part in range(8):
        table = pa.table(
            {
                "x": rng.normal(size=n),
                "k": rng.integers(0, keys, n),
                "s": rng.choice(["red", "green", "blue"], n),
                "t": rng.integers(0, 1 << 40, n).astype("datetime64[us]"),
            }
        )
        pq.write_table(table, tmp_path / f"rows-{part}.parquet", row_group_size=65_536)
    other = {"k": np.arange(keys), "v": rng.normal(size=keys)}
    other["t"] = rng.integers(0, 1 << 40, keys).astype("datetime64[us]")
    pq.write_table(pa.table(other).rename_columns(["k", "v", "w"]), tmp_path / "other.parquet")
    peaks = []
    for files in (1, 8):
        command = [sys.executable, "-c", MEASURE, str(tmp_path), str(files)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows, peak = map(int, done.stdout.split())
        assert rows == files * n
        peaks.append(peak)
    assert peaks[1] < 1.3 * peaks[0], peaks
