"""The steps of a plan side by side: the same rows as one after another, and no thread left over."""

import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drivetrain.core.metric import Progress
from drivetrain.core.seams import SPLITS
from drivetrain.core.window import Window
from drivetrain.events import CSV, HashSplit, Parquet, col, prepare, prepared
from drivetrain.events.duckdb import CHUNK, Engine, Limits, StoppedError, engine
from drivetrain.events.plan import stream
from drivetrain.events.windowed import backfill, order
from drivetrain.events.windowed.order import InOrder

ROWS = 600
WINDOWS = {
    "many": Window(by="k", stat="count", over="9us"),
    "total": Window("x", by="k", stat="sum", rows=5),
    "since": Window(by="k", stat="since"),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 40 rows, and no thread that outlives a test."""
    monkeypatch.setattr(prepared, "CHUNK", 40)
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def lay(path, at):
    random = np.random.default_rng(3)
    columns = {
        "at": pa.array(at, pa.timestamp("us")),
        "n": np.arange(len(at)),
        "k": random.integers(0, 7, len(at)),
        "x": random.normal(size=len(at)).round(3),
    }
    pq.write_table(pa.table(columns), path)
    keys = {"k": np.arange(6), "name": [f"k{i}" for i in range(6)]}
    pq.write_table(pa.table(keys), path.with_suffix(".keys"))
    return (
        Parquet(path, time="at")
        .where(col("x") > -1)
        .with_windows(**WINDOWS)
        .join(Parquet(path.with_suffix(".keys")), on="k")
        .split(HashSplit(columns=("n",)))
    )


NAMES = ("at", "n", "x", *WINDOWS, "name")


def kept(table):
    """The rows of a table one after another, by their number."""
    limits = Limits(threads=1, chunk=40)
    with engine(limits) as running:
        parts = [part.select(NAMES) for part in stream(table, NAMES, running, limits)]
    return {row["n"]: row for part in parts for row in part.to_pylist()}


def laid(ready):
    files = [pq.read_table(file) for split in SPLITS for file in ready.files(split)]
    return {row["n"]: row for file in files for row in file.to_pylist()}


def test_rows_in_order_pass_through_and_are_those_of_one_step_after_another(tmp_path, monkeypatch):
    table = lay(tmp_path / "rows.parquet", np.arange(ROWS) // 3)
    due = kept(table)
    monkeypatch.setattr(backfill, "Rows", None)  # nothing is laid down meanwhile
    ready = prepare(table, NAMES, tmp_path / "ready")
    assert laid(ready) == due
    for split in SPLITS:
        numbers = [n for file in ready.files(split) for n in pq.read_table(file)["n"].to_pylist()]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("late", [0, 1, 399, ROWS - 1])
def test_a_row_that_comes_too_late_has_all_read_anew(tmp_path, late):
    at = np.arange(ROWS) // 3 + 10
    at[late:] -= 9
    table = lay(tmp_path / "rows.parquet", at)
    told = []
    ready = prepare(table, NAMES, tmp_path / "ready", emit=told.append)
    assert laid(ready) == kept(table)
    by_step = {step["step"]: step["rows"] for step in ready.dropped}
    assert by_step["where(col('x') > -1)"] == ROWS, "counted once"
    assert [t for t in told if isinstance(t, Progress)][-1].done == ROWS
    held = sorted(p.name for p in ready.directory.rglob("*") if p.is_file())
    assert held == ["part-00000.parquet"] * 3 + ["prepared.json"]


def test_too_many_open_keys_have_all_read_anew(tmp_path, monkeypatch):
    table = lay(tmp_path / "rows.parquet", np.arange(ROWS))
    due = prepare(table, NAMES, tmp_path / "due").digest
    monkeypatch.setattr(order, "STATE", 0)
    assert prepare(table, NAMES, tmp_path / "ready").digest == due


def test_keys_are_forgotten_as_they_become_empty(tmp_path, monkeypatch):
    table = lay(tmp_path / "rows.parquet", np.arange(ROWS) * 5)
    due = prepare(table, ("n", "many"), tmp_path / "due").digest
    sizes, plain = [], InOrder.answer

    def counted(self, batch):
        found = plain(self, batch)
        sizes.append(self._tracks.bytes)
        return found

    monkeypatch.setattr(InOrder, "answer", counted)
    monkeypatch.setattr(order, "FREE", 0)
    assert prepare(table, ("n", "many"), tmp_path / "ready").digest == due
    assert len(sizes) > 5


def test_the_first_error_by_order_rises_whoever_meets_it(tmp_path):
    lines = [str(n) for n in range(ROWS)]
    lines[130] = "oops"
    path = tmp_path / "rows.csv"
    path.write_text("a\n" + "\n".join(lines) + "\n")
    made = CSV(path, types={"a": "string"}).with_columns(b=col("a").cast("int64"))
    heard = []

    def refuse(item):
        heard.append(item)
        raise RuntimeError("the listener's own")

    with pytest.raises(ValueError, match="'oops'"):
        prepare(made, ("b",), tmp_path / "store" / "ready")
    with pytest.raises(RuntimeError, match="the listener's own"):
        prepare(made, ("b",), tmp_path / "store" / "ready", emit=refuse)
    assert len(heard) == 1
    assert list((tmp_path / "store").iterdir()) == []


def test_who_breaks_off_while_rows_are_held_back_does_not_wait_for_all_of_them(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("drivetrain.core.ahead.SECOND", 0.01)
    read, broken_off = [], threading.Event()
    at = np.arange(ROWS)[::-1].copy()
    table = lay(tmp_path / "rows.parquet", at)
    plain = backfill.Rows.add

    def slow(self, chunk):
        read.append(len(chunk))
        if len(read) == 4:
            assert broken_off.wait(60)
        plain(self, chunk)

    def listener(item):
        if len(read) >= 4:
            broken_off.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(backfill.Rows, "add", slow)
    with pytest.raises(KeyboardInterrupt):
        prepare(table, NAMES, tmp_path / "store" / "ready", emit=listener)
    assert len(read) < ROWS / 40
    assert list((tmp_path / "store").iterdir()) == []


def test_each_thread_has_a_chunk_of_its_own(tmp_path):
    both = threading.Barrier(2)
    found = {}

    def ask(running, number):
        chunk = pa.table({"n": [number], "__row__": [0]})
        for _ in range(20):
            both.wait(60)
            given = running.run(f"SELECT n, __row__ FROM {CHUNK}", chunk, "a step")
            found.setdefault(number, set()).update(given["n"].to_pylist())

    with engine(Limits(threads=1, directory=tmp_path)) as running:
        held = running.create("n BIGINT")
        running.insert(held, f"SELECT n FROM {CHUNK}", pa.table({"n": [7]}), "a step")
        other = threading.Thread(target=ask, args=(running, 1))
        other.start()
        ask(running, 2)
        other.join()
        assert found == {1: {1}, 2: {2}}

        seen = []
        query = f"SELECT count(*) FROM {held}"
        ask_held = lambda: seen.append(running.connection.sql(query).fetchall())  # noqa: E731
        other = threading.Thread(target=ask_held)
        other.start()
        other.join()
        assert seen == [[(1,)]], "what is held is held for all threads"


def test_an_engine_that_was_stopped_begins_nothing(tmp_path):
    with engine(Limits(threads=1, directory=tmp_path)) as running:
        chunk = pa.table({"n": [1], "__row__": [0]})
        assert isinstance(running, Engine)
        chunks = running.lasting([chunk, chunk])
        assert next(chunks) is chunk
        running.stop()
        with pytest.raises(StoppedError):
            next(chunks)
        with pytest.raises(StoppedError):
            running.run(f"SELECT n, __row__ FROM {CHUNK}", chunk, "a step")
