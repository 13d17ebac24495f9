"""The kernel of windows gives, to the bit, what going through all observations anew gives."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from windows_reference import ALL, MANY, NAN, SCHEMA, Reference, batch_of, many_rows

from drivetrain.core.batch import Batch
from drivetrain.core.schema import MISSING_INT
from drivetrain.core.tracks import ASK, BOTH, TELL, Observed, Tracks
from drivetrain.core.window import Window, Windows

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
