"""A state that is taken apart key by key and put together again, and what tells a track nothing."""

import numpy as np
import pytest
from windows_reference import ALL, SCHEMA, batch_of, many_rows

from drivetrain.core.batch import Batch
from drivetrain.core.key_states import KeyStates, apart, digest_of, together
from drivetrain.core.schema import MISSING_INT
from drivetrain.core.tracks import TELL, Tracks
from drivetrain.core.window import Windows

WINDOWS = Windows("at", tuple(ALL.items()), 10)


def made() -> Tracks:
    """A state after made rows."""
    tracks = Tracks(WINDOWS, SCHEMA, 1)
    tracks.observe(many_rows(3_000, 1))
    return tracks


def test_a_state_that_is_put_together_again_is_the_same_bytes() -> None:
    data = made().dump()
    tracks = apart(data)
    assert sum(len(track.blobs) for track in tracks) == made().keys
    assert [track.watermark for track in tracks] == [made().watermark] * len(tracks)
    assert together(digest_of(data), tracks) == data
    turned = [KeyStates(t.watermark, t.hashes[::-1], t.blobs[::-1]) for t in tracks]
    assert together(digest_of(data), turned) == data
    empty = Tracks(WINDOWS, SCHEMA, 1).dump()
    assert together(digest_of(empty), apart(empty)) == empty


def test_single_keys_are_those_that_the_kernel_gives() -> None:
    tracks = made()
    for number, track in enumerate(apart(tracks.dump())):
        assert tracks.dump_keys(number, track.hashes) == list(track.blobs)


def test_other_bytes_are_refused() -> None:
    data = made().dump()
    with pytest.raises(ValueError, match="damaged or cut bytes"):
        apart(data[:-1])
    with pytest.raises(ValueError, match=r"what dump\(\) gave"):
        apart(b"other")


def test_what_tells_a_track_nothing_is_what_the_kernel_calls_missing() -> None:
    """Kinds of values, keys and times that are missing, one by one."""
    plain = {"at": 5, "known": 7, "card": "a", "shop": 1, "x": 1.5, "n": 2, "s": "p"}
    changes = [
        {},
        {"card": ""},
        {"shop": MISSING_INT},
        {"at": MISSING_INT},
        {"known": MISSING_INT},
        {"n": MISSING_INT},
        {"s": ""},
        *({"x": x} for x in (np.nan, np.inf, 2.0**62, -(2.0**62), 4.7e18, 5e18, -5e18, -0.0)),
    ]
    for change in changes:
        batch = batch_of([{**plain, **change}])
        tracks = Tracks(WINDOWS, SCHEMA, 1)
        missing = 0
        for number in range(len(tracks.tracks)):
            values = tracks.values(number, batch)
            told = tracks.told(number, batch, tracks.hash(number, batch), values)
            missing += told[0] == MISSING_INT
        assert tracks.observe(batch).missing == missing, change


def test_what_is_told_may_be_known_at_another_time_than_it_is_asked() -> None:
    windows = WINDOWS.select(("later_last",))
    one, other = (Tracks(windows, SCHEMA, 1) for _ in range(2))
    batch = many_rows(500, 2)
    known = batch["at"] + np.arange(500) % 7
    due = one.replay(Batch({**batch.columns, "known": known}))
    keys, values = other.hash(0, batch), other.values(0, batch)
    told = other.told(0, Batch({**batch.columns, "known": known}), keys, values)
    latest = np.maximum.accumulate(np.append(MISSING_INT + 11, told))[:-1]
    kinds = np.where((told != MISSING_INT) & (told >= latest - 10), 3, 1)
    assert TELL in kinds & TELL
    (found,) = other.run(0, keys, batch["at"], values, kinds.astype(np.uint8), told)
    assert found.tolist() == due["later_last"].tolist()
