"""Windows over all rows of a plan: what a naive reader finds, however the rows lie and are cut."""

import errno
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.seams import SPLITS, Shard
from drivetrain.core.window import Window, microseconds_of
from drivetrain.events import HashSplit, Parquet, col, prepare
from drivetrain.events.duckdb import Engine, Limits, engine
from drivetrain.events.plan import batches, compile_plan, stream
from drivetrain.events.windowed import backfill, order, spill

MOMENTS = st.none() | st.integers(0, 12)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "at": MOMENTS,
            "known": MOMENTS,
            "k": st.none() | st.sampled_from("ab"),
            "n": st.none() | st.integers(-3, 3),
            "x": st.none() | st.sampled_from([0.1, -2.5, 1e9, 0.3]),
        }
    ),
    max_size=25,
)
WINDOWS = {
    "many": Window(by="k", stat="count", over="4us"),
    "seen": Window("x", by="k", stat="count"),
    "total": Window("x", by="k", stat="sum", over="3us", known="known"),
    "mean": Window("n", by=("k", "n"), stat="mean", known="known"),
    "least": Window("n", by="k", stat="min", over="5us"),
    "most": Window("x", by="k", stat="max", rows=3, known="known"),
    "kinds": Window("n", by="k", stat="distinct", over="6us", known="known"),
    "before": Window("n", by="k", stat="last", over="6us"),
    "since": Window(by="k", stat="since"),
    "some": Window("x", by="k", stat="recent", rows=2),
    "panes": Window("n", by="k", stat="sum", over="4us", resolution="2us", known="known"),
}
LIMITS = Limits(threads=1)


def table(path, rows):
    """Rows as dictionaries in a Parquet file."""
    types = {
        **dict.fromkeys(("at", "known"), pa.timestamp("us")),
        "k": pa.string(),
        "n": pa.int64(),
        "x": pa.float64(),
    }
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(types.items()))), path)
    return Parquet(path, time="at")


def filled(plan, chunk=1000, columns=tuple(WINDOWS)):
    """The rows of a plan, in order."""
    limits = Limits(threads=1, chunk=chunk)
    with engine(limits) as running:
        parts = list(stream(plan, columns, running, limits))
    return [row for part in parts for row in part.to_pylist()]


def told(rows, row, window):
    """What a window gives a row: every row is looked at."""
    keys = (window.by,) if isinstance(window.by, str) else window.by
    key, time = tuple(row[name] for name in keys), row["at"]
    over = math.inf if window.over is None else microseconds_of(window.over, "over")
    step = 1 if window.resolution is None else microseconds_of(window.resolution, "resolution")
    seen = []
    for other in rows:
        known = other[window.known or "at"]
        value = 1 if window.value is None else other[window.value]
        if None in (time, known, value, *key) or tuple(other[name] for name in keys) != key:
            continue
        known = -(-known // step) * step
        if time - over <= known < time:
            seen.append((known, value))
    seen.sort()
    seen = seen[-window.rows :] if window.rows else seen
    values = [value for _, value in seen]
    if window.stat == "recent":
        return (values[::-1] + [None] * window.rows)[: window.rows]
    if window.stat in ("count", "distinct"):
        return len(values) if window.stat == "count" else len(set(values))
    if window.stat == "sum":
        return float(sum(map(Fraction, values), Fraction(0)))
    if not values:
        return None
    if window.stat == "since":
        return (time - seen[-1][0]) / 1e6
    mean = sum(map(Fraction, values), Fraction(0)) / len(values)
    found = {"mean": float(mean), "min": min(values), "max": max(values), "last": values[-1]}
    return found[window.stat]


@settings(max_examples=30)
@given(ROWS, st.integers(1, 9), st.integers(1, 9), st.sampled_from(["as they come", "in order"]))
def test_any_rows_are_told_what_was_known_before_them(tmp_path_factory, rows, chunk, piece, order):
    if order == "in order":
        rows = sorted(rows, key=lambda row: (row["at"] is None, row["at"]))
    plan = table(tmp_path_factory.mktemp("rows") / "rows.parquet", rows).with_windows(**WINDOWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backfill, "PIECE", piece)
        patch.setattr(spill, "SPAN", 4)
        found = filled(plan, chunk)
    for name, window in WINDOWS.items():
        assert [row[name] for row in found] == [told(rows, row, window) for row in rows], name


def test_rows_in_order_of_time_are_walked_as_they_come(tmp_path, monkeypatch):
    rows = [{"at": i // 3, "k": "abc"[i % 3], "n": i, "x": i / 7} for i in range(200)]
    names = ("many", "seen", "least", "before", "since", "some")
    at_once = {name: WINDOWS[name] for name in names}
    plan = table(tmp_path / "rows.parquet", rows).with_windows(**at_once)
    monkeypatch.setattr(order, "STATE", 0)
    by_key = filled(plan, 7, names)
    monkeypatch.undo()
    monkeypatch.setattr(Engine, "sorted", None)
    assert filled(plan, 7, names) == by_key
    late = table(tmp_path / "late.parquet", [*rows, {"at": 0, "k": "a"}])
    with pytest.raises(TypeError):  # this one has to be sorted
        filled(late.with_windows(**at_once), 7, names)


def test_a_walk_that_is_given_up_leaves_nothing_on_the_disk(tmp_path, monkeypatch):
    rows = [{"at": i, "k": "abc"[i % 3]} for i in range(50)]
    late = [*rows, {"at": 0, "k": "a"}]
    plain, held = Engine.sorted, []

    def looked(self, *given):
        (folder,) = Path(self.directory).glob("windows-*")
        held.append(len([path for path in folder.iterdir() if path.is_dir()]))
        return plain(self, *given)

    monkeypatch.setattr(Engine, "sorted", looked)
    window = {"many": WINDOWS["many"]}
    filled(table(tmp_path / "late.parquet", late).with_windows(**window), 7, window)
    monkeypatch.setattr(order, "STATE", 0)
    filled(table(tmp_path / "rows.parquet", rows).with_windows(**window), 7, window)
    assert held == [1, 1], "the place of the walk by key, and no other"


def test_what_comes_later_changes_nothing(tmp_path):
    rng = np.random.default_rng(5)
    rows = [
        {"at": t, "known": t + int(d), "k": "ab"[int(k)], "n": int(n), "x": float(x)}
        for t, d, k, n, x in zip(
            rng.integers(0, 500, 400).tolist(),
            rng.integers(-3, 40, 400),
            rng.integers(0, 2, 400),
            rng.integers(0, 9, 400),
            rng.normal(size=400),
            strict=True,
        )
    ]
    others = [
        {**row, "n": 5, "x": 1e6} if min(row["at"], row["known"]) >= 250 else row for row in rows
    ]
    others += [{"at": 300, "known": 250, "k": "a", "n": 1, "x": 1.0}] * 9
    first, second = (
        filled(table(tmp_path / f"{name}.parquet", found).with_windows(**WINDOWS))
        for name, found in (("one", rows), ("other", others))
    )
    before = [number for number, row in enumerate(rows) if row["at"] <= 250]
    assert len(before) > 150
    mean = {"mean"}  # by the value itself, which was changed
    for number in before:
        if rows[number] == others[number]:
            assert first[number] == second[number]
        assert all(first[number][n] == second[number][n] for n in WINDOWS.keys() - mean)
    assert first[390:] != second[390:400]


def test_a_step_sees_the_rows_that_come_to_it(tmp_path):
    rows = [{"at": i, "k": "a", "n": i % 2, "x": 1.0} for i in range(6)]
    made = table(tmp_path / "rows.parquet", rows)
    seen = Window(by="k", stat="count")
    after = made.with_windows(seen=seen).where(col("n") == 1)
    before = made.where(col("n") == 1).with_windows(seen=seen)
    assert [row["seen"] for row in filled(after, 2, ("seen",))] == [1, 3, 5]
    assert [row["seen"] for row in filled(before, 2, ("seen",))] == [0, 1, 2]


def test_windows_of_windows_and_of_joined_tables(tmp_path):
    rows = [{"at": i, "k": "a", "n": i, "x": 1.0} for i in range(5)]
    made = table(tmp_path / "rows.parquet", rows).with_windows(seen=Window(by="k", stat="count"))
    twice = made.with_windows(most=Window("seen", by="k", stat="max", rows=9))
    assert [row["most"] for row in filled(twice, 2, ("most",))] == [None, 0, 1, 2, 3]
    joined = table(tmp_path / "rows.parquet", rows).join(made, on="n", columns=("seen",))
    assert [row["seen"] for row in filled(joined, 2, ("seen",))] == [0, 1, 2, 3, 4]


def test_shards_hold_every_row_once_with_the_windows_of_all(tmp_path):
    rows = [{"at": 40 - i, "k": "ab"[i % 2], "n": i, "x": 1.0} for i in range(40)]
    made = (
        table(tmp_path / "rows.parquet", rows)
        .with_windows(seen=Window(by="k", stat="count"))
        .where(col("n") != 3)
        .split(HashSplit(columns=("n",)))
    )
    whole = {row["n"]: row["seen"] for row in filled(made, 3, ("n", "seen"))}
    assert set(whole.values()) == set(range(20))
    found = [
        (row["n"], row["seen"])
        for split in SPLITS
        for index in range(2)
        for batch in batches(made, split, Shard(index, 2), Limits(threads=1, chunk=3))
        for row in batch.rows()
    ]
    assert sorted(found) == sorted(whole.items())


def test_prepared_rows_are_those_of_the_plan(tmp_path):
    rows = [{"at": i * 7 % 31, "k": "ab"[i % 2], "n": i, "x": 0.1 * i} for i in range(31)]
    made = table(tmp_path / "rows.parquet", rows).with_windows(
        some=WINDOWS["some"], since=WINDOWS["since"]
    )
    ready = prepare(made.split(HashSplit(columns=("n",))), ("n", "some", "since"), tmp_path / "p")
    found = {
        row["n"]: row["since"]
        for split in SPLITS
        for batch in ready.batches(split)
        for row in batch.rows()
    }
    due = {row["n"]: row["since"] for row in filled(made, 5, ("n", "since"))}
    assert {n: None if math.isnan(v) else v for n, v in found.items()} == due


def test_no_rows_are_no_rows(tmp_path):
    assert filled(table(tmp_path / "rows.parquet", []).with_windows(**WINDOWS)) == []
    made = table(tmp_path / "some.parquet", [{"at": i, "k": "a", "n": i} for i in range(9)])
    assert filled(made.where(col("n") > 90).with_windows(**WINDOWS), 2) == []
    few = filled(made.where(col("n") % 7 == 0).with_windows(**WINDOWS), 2, ("since",))
    assert few == [{"since": None}, {"since": 7e-6}]


def test_a_full_disk_names_the_step(tmp_path, monkeypatch):
    def full(self, *args):
        raise OSError(errno.ENOSPC, "No space left on device")

    made = table(tmp_path / "rows.parquet", [{"at": 1, "k": "a"}]).with_windows(**WINDOWS)
    monkeypatch.setattr(pa.ipc.RecordBatchFileWriter, "write_batch", full)
    with pytest.raises(OSError, match=r"with_windows\(many=….*No space left") as caught:
        filled(made)
    assert caught.value.errno == errno.ENOSPC


# -- streams ---------------------------------------------------------------------------------------


def chunks_of(rows, size, path):
    found = pq.read_table(table(path, rows).urls[0])
    return [found.slice(start, size) for start in range(0, len(found), size)]


def run_all(plan, chunks):
    return [row for chunk in chunks for row in plan.run(chunk.select(plan.reads.names)).to_pylist()]


EVENTS = [{"at": i // 2, "k": "abc"[i % 3], "n": i % 5, "x": i / 3} for i in range(60)]
NAMES = ("many", "least", "before", "since", "some")
AT_ONCE = {name: WINDOWS[name] for name in NAMES}


def test_a_stream_in_order_is_told_what_a_backfill_is(tmp_path):
    made = table(tmp_path / "rows.parquet", EVENTS).with_windows(**AT_ONCE)
    with engine(LIMITS) as running:
        for size in (1, 7, 60):
            plan = compile_plan(made, NAMES, running, LIMITS, split=False)
            assert run_all(plan, chunks_of(EVENTS, size, tmp_path / "c.parquet")) == filled(
                made, 9, NAMES
            )


def test_a_stream_goes_on_from_a_state(tmp_path):
    made = (
        table(tmp_path / "rows.parquet", EVENTS)
        .drop_duplicates("k", "n", "at")
        .with_windows(**AT_ONCE)
    )
    chunks = chunks_of([*EVENTS, *EVENTS[-9:]], 6, tmp_path / "c.parquet")
    with engine(LIMITS) as running:
        whole = run_all(compile_plan(made, NAMES, running, LIMITS, split=False), chunks)
    found = []
    state = None
    for chunk in chunks:
        with engine(LIMITS) as running:
            plan = compile_plan(made, NAMES, running, LIMITS, split=False)
            if state is not None:
                plan.restore(state)
            found += run_all(plan, [chunk])
            state = plan.state()
    assert found == whole
    assert len(found) < len(EVENTS) + 9


def test_a_state_of_another_plan_or_a_torn_one_is_refused(tmp_path):
    made = table(tmp_path / "rows.parquet", EVENTS)
    with engine(LIMITS) as running:
        plan = compile_plan(made.with_windows(**AT_ONCE), NAMES, running, LIMITS, split=False)
        run_all(plan, chunks_of(EVENTS, 9, tmp_path / "c.parquet"))
        state = plan.state()
        names = ("many",)
        few = made.with_windows(many=WINDOWS["many"])
        other = compile_plan(few, names, running, LIMITS, split=False)
        with pytest.raises(ValueError, match=r"a plan's state: found .format 1 with"):
            other.restore(state)
        longer = {**AT_ONCE, "many": Window(by="k", stat="count", over="1h")}
        longer = compile_plan(made.with_windows(**longer), NAMES, running, LIMITS, split=False)
        with pytest.raises(ValueError, match="another declaration"):
            longer.restore(state)
        for torn in (b"", state[:40], state[:-1], b"{}\n"):
            with pytest.raises(ValueError, match="a plan's state"):
                plan.restore(torn)


# -- memory ----------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from drivetrain.core.window import Window
from drivetrain.events import HashSplit, Parquet, prepare
from drivetrain.events.windowed import backfill
from drivetrain.events.windowed import spill

backfill.PIECE, spill.SPAN = 1 << 15, 1 << 15  # so that one times the rows fills several too
folder, files = Path(sys.argv[1]), int(sys.argv[2])
table = (
    Parquet([folder / f"rows-{i}.parquet" for i in range(files)])
    .with_windows(time="ordered", count=Window(by="k", stat="count", over="1h"))
    .with_windows(
        time="shuffled",
        mean=Window("x", by="k", stat="mean", over="1d"),
        most=Window("x", by="k", stat="max", over="1d", known="known"),
    )
    .split(HashSplit(columns=("k",)))
)
ready = prepare(
    table, ("x", "count", "mean", "most"), folder / f"ready-{files}", threads=1, memory="64MB"
)
print(sum(ready.rows(s) for s in ("train", "validate", "test")))
# not ru_maxrss, which remembers the peak of the process that started this one
status = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    rng = np.random.default_rng(0)
    rows, second = 100_000, 1_000_000
    for number in range(16):
        made = {"k": rng.integers(0, 2_000, rows), "x": rng.normal(size=rows)}
        at = (number * rows + np.arange(rows)) * second
        shuffled = rng.permutation(at)
        times = {"ordered": at, "shuffled": shuffled, "known": shuffled + 60 * second}
        columns = made | {name: values.astype("M8[us]") for name, values in times.items()}
        pq.write_table(pa.table(columns), tmp_path / f"rows-{number}.parquet")
    peaks = []
    for count in (1, 16):
        command = [sys.executable, "-c", MEASURE, str(tmp_path), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found, peak = map(int, done.stdout.split())
        assert found == count * rows
        peaks.append(peak)
    assert peaks[1] < 1.25 * peaks[0], peaks
