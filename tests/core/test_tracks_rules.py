"""The kernel of windows keeps its rules, one by one: times, sums, memory, hashes and bytes."""

import ctypes
import gc
import math
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from windows_reference import ALL, MANY, SCHEMA, batch_of, exact_sum, many_rows, rounded

from drivetrain.core.batch import Batch, Categorical
from drivetrain.core.key_hash import hashes_of, together
from drivetrain.core.native import kernel
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.tracks import Observed, Tracks
from drivetrain.core.window import Window, Windows


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
    total = exact_sum(values)
    for name in ("sum", "all"):
        assert found[name][0] == rounded(total)
    assert found["mean"][0] == rounded(total / len(values))
    assert found["panes"].tolist() == [0.0, rounded(total)]
    assert found["panes_mean"][1] == rounded(total / len(values))


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
    found = tracks.replay(batch.with_columns({"at": batch["at"] + 50}))
    assert {len(column) for column in found.values()} == {len(batch)}
    data = tracks.dump()
    assert Tracks.load(data, windows, SCHEMA).dump() == data


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


def test_what_is_late_does_not_depend_on_how_many_threads_deal_out_the_rows() -> None:
    random, rows = np.random.default_rng(4), 140_000
    schema = Schema((Field("at", "timestamp"), Field("k", "int64"), Field("x", "float64")))
    columns = (("total", Window("x", by="k", stat="sum", over="1s")),)
    at = np.arange(rows) * 10 + random.integers(-4_000, 4_000, rows)
    at[random.integers(0, rows, 500)] = MISSING_INT
    x = random.normal(size=rows)
    x[random.integers(0, rows, 500)] = np.nan
    batch = Batch({"at": at, "k": random.integers(0, 300, rows), "x": x})
    found = []
    for threads in (1, 2, 3, 20):
        tracks = Tracks(Windows("at", columns, 3_000), schema, threads)
        total = tracks.replay(batch)["total"].tobytes()
        found.append((tracks.observe(batch), total, tracks.watermark, tracks.dump()))
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0][0].late > 1_000
    assert found[0][0].missing > 500
    assert found[0][2] == at.max()
