"""The kernel of windows gives, to the bit, what going through all observations anew gives."""

import ctypes
import gc
import importlib.util
import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drivetrain.core.batch import Batch, Categorical
from drivetrain.core.key_hash import hashes_of, together
from drivetrain.core.native import kernel
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.tracks import ASK, BOTH, TELL, Observed, Tracks
from drivetrain.core.window import Window, Windows

PLACE = Path(__file__).with_name("windows_reference.py")
spec = importlib.util.spec_from_file_location("windows_reference", PLACE)
assert spec is not None
assert spec.loader is not None
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)
Reference = reference.Reference

SCHEMA = Schema(
    (
        Field("at", "timestamp"),
        Field("known", "timestamp"),
        Field("card", "string"),
        Field("shop", "int64"),
        Field("x", "float64"),
        Field("n", "int64"),
        Field("s", "string"),
    )
)
ADDING = ("count", "sum", "mean")
NAN = math.nan


def every_window(value: str) -> dict[str, Window]:
    """Each statistic of a column with each way to look back that it allows."""
    made = {}
    for stat in (*ADDING, "min", "max", "distinct", "last", "since"):
        ways = {
            "over": {"over": "5us"},
            "long": {"over": "20us"},
            "rows": {"rows": 3},
            "both": {"rows": 3, "over": "9us"},
        }
        if stat in (*ADDING, "last", "since"):
            ways["all"] = {}
        if stat in (*ADDING, "min", "max"):
            ways["panes"] = {"over": "20us", "resolution": "4us"}
        if stat in ADDING:
            ways |= {"half": {"half_life": "2us"}, "slow": {"half_life": "7us"}}
        for way, options in ways.items():
            made[f"{stat}_{value}_{way}"] = Window(value, by="card", stat=stat, **options)
    made[f"recent_{value}"] = Window(value, by="card", stat="recent", rows=4)
    return made


ALL = {
    **every_window("x"),
    **every_window("n"),
    "distinct_s": Window("s", by="card", stat="distinct", over="20us"),
    "count_s": Window("s", by="card", stat="count", over="20us"),
    "two_keys": Window(by=("card", "shop"), stat="count", over="9us"),
    "by_shop": Window(by="shop", stat="since"),
    "later_sum": Window("x", by="card", stat="sum", over="20us", known="known"),
    "later_last": Window("n", by="shop", stat="last", known="known"),
}
FLOATS = (1.5, -2.25, NAN, math.inf, 1e18, 4e18, -4e18, 5e18, 1e-30, 0.1, 3e-20, 0.0, -0.0, 1e300)
INTEGERS = (1, 2, 3, -5, 2**62, 1 - 2**63, 2**63 - 1, MISSING_INT)
row_values = st.fixed_dictionaries(
    {
        "step": st.sampled_from((0, 0, 0, 1, 1, 2, 5, 30, 500)),
        "behind": st.integers(0, 12),
        "ahead": st.sampled_from((0, 0, 3, None)),
        "card": st.sampled_from(("a", "b", "é", "")),
        "shop": st.sampled_from((1, 2, MISSING_INT)),
        "x": st.sampled_from(FLOATS) | st.floats(),
        "n": st.sampled_from(INTEGERS) | st.integers(-5, 5),
        "s": st.sampled_from(("p", "q", "rr", "")),
        "then": st.sampled_from(("tell", "tell", "tell", "one", "pass", "expire", "dump", "keys")),
    }
)


def batch_of(rows) -> Batch:
    columns = {}
    for field in SCHEMA:
        values = [row[field.name] for row in rows]
        columns[field.name] = np.array(values, dtype=field.numpy)
    return Batch(columns)


def same(found, expected) -> bool:
    if isinstance(expected, list):
        expected += [None] * (len(found) - len(expected))
        return all(map(same, found, expected))
    if expected is None:
        return found != found or found == MISSING_INT
    return type(found) is type(expected) and found == expected


def plain(found):
    """An ``ask`` as the row of a ``read`` is."""
    return [list(value) if isinstance(value, tuple) else value for value in found]


def replayed_keys(tracks: Tracks, made: Tracks, batch: Batch) -> Tracks:
    """Another state that has taken over what the batch's keys have in one."""
    for number in range(len(tracks.tracks)):
        hashes = tracks.hash(number, batch)
        blobs = tracks.dump_keys(number, hashes)
        made.load_keys(number, hashes, blobs)
        assert made.dump_keys(number, hashes) == blobs
    return tracks


@settings(max_examples=40)
@given(
    st.sets(st.sampled_from(sorted(ALL)), min_size=1, max_size=12),
    st.sampled_from((0, 0, 3, 10)),
    st.lists(row_values, max_size=40),
)
def test_every_window_is_what_going_through_all_that_was_observed_gives(names, lateness, steps):
    windows = Windows("at", tuple((name, ALL[name]) for name in sorted(names)), lateness)
    check(windows, steps)


def test_all_windows_at_once_are_right_over_a_long_sequence():
    random = np.random.default_rng(5)
    steps = [
        {
            "step": int(random.choice((0, 0, 0, 1, 2))),
            "behind": int(random.integers(0, 6)),
            "ahead": int(random.choice((0, 3))),
            "card": str(random.choice(("a", "a", "b"))),
            "shop": int(random.choice((1, 2))),
            "x": float(random.choice((0.1, 2.5, -7.25, 1e17, float(random.normal())))),
            "n": int(random.integers(-9, 9)),
            "s": str(random.choice(("p", "q", "r"))),
            "then": str(random.choice(("tell", "one", "dump"), p=(0.7, 0.25, 0.05))),
        }
        for _ in range(120)
    ]
    check(Windows("at", tuple(ALL.items()), 5), steps)


def check(windows: Windows, steps) -> None:
    tracks, right = Tracks(windows, SCHEMA), Reference(windows)
    now, kept, late, missing = 0, 0, 0, 0
    for step in steps:
        now += step["step"]
        time = now - min(step["behind"], now if windows.lateness == 0 else step["behind"])
        known = MISSING_INT if step["ahead"] is None else time + step["ahead"]
        row = {**{f.name: step.get(f.name) for f in SCHEMA}, "at": time, "known": known}
        batch = batch_of([row])
        marks = [mark for mark in right.watermarks if mark is not None]
        if not marks or time >= max(marks) - windows.lateness:  # else it can no longer be asked
            found, expected = tracks.read(batch), right.ask(row)
            one = plain(tracks.ask(tuple(row[name] for name in windows.asked)))
            assert repr(one) == repr([found[name][0].tolist() for name in windows.names])
            for name in windows.names:
                assert same(found[name][0].tolist(), expected[name]), name
        if step["then"] == "tell":
            told = tracks.observe(batch)
        elif step["then"] == "one":
            told = Observed(*tracks.tell(tuple(row[name] for name in windows.observed)))
        else:
            tracks = changed(tracks, step["then"], batch)
            continue
        right.tell(row)
        kept, late, missing = kept + told.kept, late + told.late, missing + told.missing
        assert (kept, late, missing) == (right.kept, right.late, right.missing)


def changed(tracks: Tracks, how: str, batch: Batch) -> Tracks:
    """What must not change anything that is asked later."""
    windows = tracks.windows
    if how == "expire":
        for native in tracks._native:
            if native.watermark is not None:
                native.expire(native.watermark - windows.lateness)
    if how == "dump":
        data = tracks.dump()
        tracks = Tracks.load(data, windows, SCHEMA)
        assert tracks.dump() == data
    if how == "keys":
        replayed_keys(tracks, Tracks(windows, SCHEMA), batch)
    return tracks


# -- many rows -------------------------------------------------------------------------------------

MANY = Windows(
    "at",
    tuple((name, ALL[name]) for name in sorted(ALL) if not name.startswith("later")),
    lateness=3,
)


def many_rows(rows: int, seed: int) -> Batch:
    random = np.random.default_rng(seed)
    values = np.array(["a", "b", "c", "", *(f"card {n}" for n in range(50))], dtype=object)
    times = np.sort(random.integers(0, rows, rows)) - random.integers(0, 5, rows)
    return Batch(
        {
            "at": times,
            "known": times,
            "card": Categorical(random.integers(0, len(values), rows).astype(np.int32), values),
            "shop": random.integers(0, 9, rows),
            "x": np.where(random.random(rows) < 0.1, NAN, np.round(random.normal(0, 50, rows), 2)),
            "n": random.integers(-4, 4, rows),
            "s": values[random.integers(0, 9, rows)],
        }
    )


def test_threads_and_the_cutting_into_batches_change_no_bit():
    batch = many_rows(20_000, seed=1)
    found = []
    for threads, size in ((1, 20_000), (3, 20_000), (2, 6_000), (1, 700)):
        tracks = Tracks(MANY, SCHEMA, threads=threads)
        cut = [tracks.replay(batch.slice(i, i + size)) for i in range(0, len(batch), size)]
        joined = {name: np.concatenate([part[name] for part in cut]) for name in MANY.names}
        found.append((joined, tracks.dump()))
    for joined, state in found[1:]:
        assert state == found[0][1]
        for name in MANY.names:
            assert joined[name].tobytes() == found[0][0][name].tobytes(), name


def test_observations_in_another_order_within_the_lateness_give_equal_bytes():
    rows = many_rows(3_000, seed=2)
    rows = rows.with_columns({"at": np.sort(rows["at"]) // 40, "known": rows["at"]})
    windows = Windows("at", MANY.columns, lateness=10_000)
    states = set()
    for seed in range(3):
        tracks = Tracks(windows, SCHEMA)
        tracks.observe(rows.slice(2_999, 3_000))  # the watermark is the same from the first on
        order = np.random.default_rng(seed).permutation(2_999)
        tracks.observe(rows.take(order))
        states.add(tracks.dump())
    assert len(states) == 1


def test_reads_change_no_byte_of_the_state():
    batch = many_rows(2_000, seed=3)
    read, unread = Tracks(MANY, SCHEMA), Tracks(MANY, SCHEMA)
    for i in range(0, 2_000, 250):
        part = batch.slice(i, i + 250)
        read.read(part)
        read.observe(part)
        unread.observe(part)
        read.read(batch.slice(0, i + 1))  # of long ago, too
    assert read.dump() == unread.dump()


def test_a_replay_asks_and_tells_as_rows_say():
    batch = many_rows(500, seed=4)
    random = np.random.default_rng(4)
    asks, tells = random.random(500) < 0.5, random.random(500) < 0.5
    tracks, one_by_one = Tracks(MANY, SCHEMA), Tracks(MANY, SCHEMA)
    found = tracks.replay(batch, asks, tells)
    empty = one_by_one.read(batch.slice(0, 1))
    for i in range(500):
        row = batch.slice(i, i + 1)
        expected = one_by_one.read(row) if asks[i] else empty
        for name in MANY.names:
            assert found[name][i : i + 1].tobytes() == expected[name].tobytes(), name
        if tells[i]:
            one_by_one.observe(row)
    assert tracks.dump() == one_by_one.dump()


def test_the_raw_form_gives_what_the_replay_gives():
    batch = many_rows(300, seed=5)
    batch = batch.with_columns({"at": np.sort(batch["at"])})
    tracks, raw = Tracks(MANY, SCHEMA), Tracks(MANY, SCHEMA)
    expected = tracks.replay(batch)
    kinds = np.full(300, BOTH, np.uint8)
    for number, track in enumerate(raw.tracks):
        keys, values = raw.hash(number, batch), raw.values(number, batch)
        found = raw.run(number, keys, batch["at"], values, kinds)
        for (name, _), array in zip(track.windows, found, strict=True):
            assert array.tobytes() == expected[name].tobytes(), name


def test_a_row_that_only_tells_has_empty_windows_in_the_raw_form():
    windows = Windows("at", (("count", Window(by="card", stat="count", over="1h")),))
    tracks = Tracks(windows, SCHEMA)
    keys = np.array([[1, 2]] * 3, np.uint64)
    times = np.array([5, 6, 7])
    found = tracks.run(0, keys, times, None, np.array([TELL, TELL, ASK], np.uint8))
    assert found[0].tolist() == [0, 0, 2]


# -- rules, one by one -----------------------------------------------------------------------------


def state(lateness: int = 0, **windows: Window) -> Tracks:
    return Tracks(Windows("at", tuple(windows.items()), lateness), SCHEMA)


def rows_of(*rows) -> Batch:
    """Rows of (at, x), of one card."""
    plain = {"known": 0, "card": "a", "shop": 1, "n": 0, "s": ""}
    return batch_of([{**plain, "at": at, "x": x} for at, x in rows])


def test_a_row_sees_nothing_of_its_own_moment_and_what_is_as_old_as_the_window():
    tracks = state(sum=Window("x", by="card", stat="sum", over="10us"))
    tracks.observe(rows_of((0, 1.0), (1, 2.0), (10, 4.0)))
    assert tracks.read(rows_of((0, 0), (1, 0), (10, 0), (11, 0), (12, 0)))["sum"].tolist() == [
        0.0,
        1.0,
        3.0,
        6.0,
        4.0,
    ]


def test_an_asking_at_a_time_long_gone_sees_no_future():
    windows = {f"s{i}": window for i, window in enumerate(ALL.values()) if window.known is None}
    tracks = state(**windows)
    empty = tracks.read(rows_of((0, 0)))
    batch = many_rows(3_000, seed=6)
    batch = batch.with_columns({"at": np.sort(batch["at"]) + 10})
    tracks.observe(batch)
    found = tracks.read(batch.with_columns({"at": np.zeros(3_000, np.int64)}))
    for name, values in found.items():
        assert values.tobytes() == np.repeat(empty[name], 3_000, axis=0).tobytes(), name


def test_sums_are_exact_where_floats_are_not():
    tracks = state(
        sum=Window("x", by="card", stat="sum"), mean=Window("x", by="card", stat="mean", rows=3)
    )
    tracks.observe(rows_of((0, 1e18), (1, 1.0), (2, -1e18), (3, 2.0**-64), (4, 2.0**-66)))
    found = tracks.read(rows_of((9, 0)))
    assert found["sum"][0] == 1.0 + 2.0**-64
    assert found["mean"][0] == (-1e18 + 2.0**-64) / 3


@given(st.lists(st.floats(-(2.0**62), 2.0**62), min_size=1, max_size=20))
@example([2.0**62] * 9)
@example([-(2.0**62)] * 9 + [1.0])
def test_sums_and_means_are_rounded_once(values):
    tracks = state(
        sum=Window("x", by="card", stat="sum", over="1h"),
        all=Window("x", by="card", stat="sum"),
        mean=Window("x", by="card", stat="mean", over="1h"),
        panes=Window("x", by="card", stat="sum", over="1h", resolution="1h"),
        panes_mean=Window("x", by="card", stat="mean", over="1h", resolution="1h"),
    )
    tracks.observe(rows_of(*enumerate(values, start=1)))
    found = tracks.read(rows_of((3_600_000_000, 0), (3_600_000_001, 0)))
    total = reference.exact_sum(values)
    for name in ("sum", "all"):
        assert found[name][0] == reference.rounded(total)
    assert found["mean"][0] == reference.rounded(total / len(values))
    assert found["panes"].tolist() == [0.0, reference.rounded(total)]
    assert found["panes_mean"][1] == reference.rounded(total / len(values))


@given(st.integers(0, 200), st.floats(-1e6, 1e6))
def test_a_value_fades_by_halves(age, value):
    tracks = state(sum=Window("x", by="card", stat="sum", half_life="7us"))
    tracks.observe(rows_of((0, value)))
    found = float(tracks.read(rows_of((age + 1, 0)))["sum"][0])
    assert found == pytest.approx(value * 2 ** (-(age + 1) / 7), rel=1e-15, abs=1e-13)


def test_what_has_faded_for_long_is_forgotten_and_so_is_its_key():
    window = Window("x", by="card", stat="mean", half_life="7us")
    tracks = state(mean=window)
    tracks.observe(rows_of((0, 3.0)))
    assert tracks.read(rows_of((64 * 7 - 1, 0)))["mean"].tolist() == [3.0]
    assert np.isnan(tracks.read(rows_of((64 * 7, 0)))["mean"]).all()
    assert tracks.expire(64 * 7) == 0
    assert tracks.expire(64 * 7 + 1) == 1
    assert tracks.keys == 0


def test_keys_that_can_give_nothing_any_more_are_forgotten_and_others_stay():
    tracks = state(
        short=Window("x", by="card", stat="sum", over="10us"),
        ever=Window("n", by="shop", stat="count"),
    )
    batch = many_rows(1_000, seed=7)
    tracks.observe(batch.with_columns({"at": np.sort(batch["at"])}))
    before, bytes_before = tracks.keys, tracks.bytes
    gone = tracks.expire(tracks.watermark + 11)
    assert gone > 40
    assert tracks.keys == before - gone
    assert tracks.bytes < bytes_before
    assert tracks.expire(2**62) == 0  # the shops' windows never become empty


def test_memory_of_a_key_is_bounded_by_its_windows_and_by_resolution():
    held = {}
    for name, window in {
        "over": Window("x", by="card", stat="max", over="1000us"),
        "panes": Window("x", by="card", stat="max", over="1000us", resolution="100us"),
        "last": Window("x", by="card", stat="last"),
    }.items():
        tracks = state(**{name: window})
        empty = tracks.bytes
        for start in range(0, 20_000, 4_000):
            tracks.observe(rows_of(*((at, 1.0 + at % 7) for at in range(start, start + 4_000))))
        held[name] = tracks.bytes - empty
    assert held["over"] < 40_000
    assert held["panes"] < 2_000
    assert held["last"] < 600


def test_what_comes_too_late_is_counted_and_left_out():
    tracks = state(lateness=5, count=Window(by="card", stat="count", over="1h"))
    assert tracks.observe(rows_of((100, 0), (95, 0), (94, 0), (101, 0), (95, 0))) == Observed(
        kept=3, late=2, missing=0
    )
    assert tracks.read(rows_of((102, 0)))["count"].tolist() == [3]
    assert tracks.watermark == 101


def test_a_track_is_fed_when_all_of_its_columns_are_there():
    tracks = state(
        count=Window(by="card", stat="count"), sum=Window("x", by="card", stat="sum", known="known")
    )
    told = tracks.observe(Batch({"at": np.array([1]), "card": np.array(["a"], dtype=object)}))
    assert told == Observed(1, 0, 0)
    found = tracks.read(rows_of((2, 0)))
    assert (found["count"][0], found["sum"][0]) == (1, 0.0)


def test_a_row_in_plain_values_may_miss_some_and_must_have_the_right_ones():
    tracks = state(last=Window("x", by=("card", "shop"), stat="last"))
    assert tracks.windows.observed == ("card", "shop", "at", "x")
    assert tracks.tell(("a", 1, 5, None)) == (0, 0, 1)
    assert tracks.tell(("a", None, 5, 1.0)) == (0, 0, 1)
    assert tracks.tell(("a", 1, None, 1.0)) == (0, 0, 1)
    assert tracks.tell(("a", 1, 5, 2)) == (1, 0, 0)
    assert tracks.tell(("a", 1, 4, 2)) == (0, 1, 0)
    assert tracks.ask((6, "a", 1)) == (2.0,)
    assert math.isnan(tracks.ask((6, None, 1))[0])
    assert math.isnan(tracks.ask((None, "a", 1))[0])
    with pytest.raises(ValueError, match="found 2 values, allowed: 3"):
        tracks.ask((6, "a"))
    for wrong in ([6, "a", 1], (6, 1.5, 1), ("6", "a", 1)):
        with pytest.raises(TypeError):
            tracks.ask(wrong)
    with pytest.raises(TypeError):
        tracks.tell(("a", 1, 7, "much"))
    assert tracks.ask((8, "a", 1)) == (2.0,)


# -- hashes ----------------------------------------------------------------------------------------


def test_the_hash_is_that_of_its_authors():
    assert kernel().siphash(b"").hex() == "a3817f04ba25a8e66df67214c7550293"
    assert kernel().siphash(bytes(range(1))).hex() == "da87c1d86b99af44347659119b22fc45"
    assert kernel().siphash(bytes(range(15))).hex() == "5493e99933b0a8117e08ec0f97cfc3d9"


def test_hashes_of_keys_are_the_same_for_ever():
    texts = np.array(["", "a", "é", "a" * 23], dtype=object)
    found = hashes_of(texts, "string")
    digests = [kernel().siphash(text.encode() + b"\1") for text in texts[1:]]
    assert found[0].tolist() == [0, 0]
    assert [row.tobytes() for row in found[1:]] == digests
    codes = Categorical(np.array([1, 0, 3], np.int32), texts)
    assert hashes_of(codes, "string").tobytes() == found[[1, 0, 3]].tobytes()
    integers = hashes_of(np.array([7, MISSING_INT]), "int64")
    assert integers[0].tobytes() == kernel().siphash((7).to_bytes(8, "little") + b"\3")
    assert integers[1].tolist() == [0, 0]
    both = together([found[1:3], np.repeat(integers[:1], 2, axis=0)])
    assert both[0].tobytes() == kernel().siphash(found[1].tobytes() + integers[0].tobytes() + b"\4")
    assert together([found[:2], found[1:3]])[0].tolist() == [0, 0]


def test_a_text_and_its_bytes_are_different_keys():
    values = hashes_of(np.array(["a", b"a"], dtype=object), "string")
    assert values[0].tolist() != values[1].tolist()


# -- what is written -------------------------------------------------------------------------------


def test_a_state_of_other_windows_or_damaged_bytes_are_refused():
    windows = Windows("at", (("sum", ALL["sum_x_over"]), ("last", ALL["last_n_all"])))
    tracks = Tracks(windows, SCHEMA)
    tracks.observe(many_rows(200, seed=8))
    data = tracks.dump()
    with pytest.raises(ValueError, match="another declaration"):
        Tracks.load(data, windows.select(("sum",)), SCHEMA)
    with pytest.raises(ValueError, match="another declaration"):
        Tracks.load(data, Windows("at", windows.columns, lateness=1), SCHEMA)
    for bad in (
        b"",
        data[:40],
        data[:-1],
        data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        b"x" + data,
    ):
        with pytest.raises(ValueError, match="state of windows"):
            Tracks.load(bad, windows, SCHEMA)


@given(st.data())
def test_whatever_a_key_is_said_to_have_been_is_refused_or_harmless(data):
    names = data.draw(st.sets(st.sampled_from(sorted(ALL)), min_size=1, max_size=6))
    windows = Windows("at", tuple((name, ALL[name]) for name in sorted(names)), 3)
    tracks = Tracks(windows, SCHEMA)
    batch = many_rows(100, seed=9)
    tracks.observe(batch)
    hashes = tracks.hash(0, batch)[:1]
    blob = bytearray(tracks.dump_keys(0, hashes)[0])
    if data.draw(st.booleans()):
        del blob[data.draw(st.integers(0, len(blob))) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if blob:
            at = data.draw(st.integers(8, max(8, len(blob) - 1))) % len(blob)
            blob[at] = data.draw(st.integers(0, 255))
    if len(blob) > 8:  # right in form, so that what it says is looked at
        blob[-8:] = kernel().siphash(bytes(blob[:-8]))[:8]
    try:
        tracks.load_keys(0, hashes, [bytes(blob)])
    except ValueError:
        return
    tracks.replay(batch.with_columns({"at": batch["at"] + 50}))
    tracks.dump()


def test_single_keys_move_between_states_and_are_dropped():
    windows = Windows("at", (("sum", ALL["sum_x_long"]), ("recent", ALL["recent_x"])))
    one, other = Tracks(windows, SCHEMA), Tracks(windows, SCHEMA)
    one.observe(rows_of((1, 1.5), (3, 2.5)))
    hashes = one.hash(0, rows_of((0, 0)))
    absent = hashes + np.uint64(1)
    both = np.concatenate([hashes, absent])
    blobs = one.dump_keys(0, both)
    assert blobs[1] == b""
    other.load_keys(0, both, blobs)
    assert other.keys == 1
    assert other.watermark == 3
    asked = rows_of((5, 0))
    for name, values in one.read(asked).items():
        assert other.read(asked)[name].tobytes() == values.tobytes()
    other.load_keys(0, hashes, [b""])  # a key that has observed nothing takes its place
    assert other.keys == 0
    assert one.drop_keys(0, both) == 1
    assert one.read(asked)["sum"].tolist() == [0.0]


def test_memory_is_given_back():
    batch = many_rows(5_000, seed=10)
    tracks = Tracks(MANY, SCHEMA)
    empty = tracks.bytes
    tracks.observe(batch)
    for number in range(len(tracks.tracks)):
        tracks.drop_keys(number, tracks.hash(number, batch))
    assert tracks.keys == 0
    assert tracks.bytes < empty + 200_000


class Heap(ctypes.Structure):
    """What the C library says of its heap; ``in_use`` counts the bytes that are given out."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in ("a", "b", "c", "d", "mapped", "e", "f", "in_use", "g", "h")
    ]


def test_states_that_are_gone_leave_nothing_behind():
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        pytest.skip("NOT TESTED: this C library does not say how much memory is in use")
    library.mallinfo2.restype = Heap
    batch = many_rows(1_000, seed=11)

    def once() -> None:
        tracks = Tracks(MANY, SCHEMA, threads=1)
        tracks.replay(batch)
        data = tracks.dump()
        other = Tracks.load(data, MANY, SCHEMA, threads=1)
        other.load_keys(0, other.hash(0, batch), tracks.dump_keys(0, tracks.hash(0, batch)))
        other.expire(10_000)
        for bad in (data[:-1], b"", data[:100]):
            with pytest.raises(ValueError, match="state of windows"):
                Tracks.load(bad, MANY, SCHEMA)

    def in_use() -> int:
        gc.collect()
        heap = library.mallinfo2()
        return heap.in_use + heap.mapped

    once()
    before = in_use()
    for _ in range(20):
        once()
    assert in_use() - before < 20 * 2_000  # a state of these takes some 100,000 bytes
