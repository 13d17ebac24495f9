"""Which files of feedback are deleted, and which never."""

import os
import time
from datetime import UTC, datetime, timedelta

import pytest

from drivetrain.serve.telemetry.retention import Retention, place

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def lay(directory, days, *, model="a", shadow=False, number=1, size=100):
    """A file that was closed so many days ago."""
    path = place(directory, model, shadow, NOW - timedelta(days=days), 7, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def test_older_files_go_and_so_do_their_empty_days(tmp_path):
    old = lay(tmp_path, 31)
    kept = [lay(tmp_path, 29), lay(tmp_path, 0)]
    assert Retention(bytes=0, days=30).sweep(tmp_path, NOW) == (200, {"a": 1})
    assert sorted(tmp_path.rglob("*.parquet")) == sorted(kept)
    assert not old.parent.exists()


def test_beyond_the_bytes_the_oldest_go_first_whatever_model_they_are_of(tmp_path):
    lay(tmp_path, 3, model="b")
    lay(tmp_path, 2, shadow=True)
    kept = [lay(tmp_path, 1), lay(tmp_path, 0, model="b")]
    assert Retention(bytes=250, days=0).sweep(tmp_path, NOW) == (200, {"b": 1, "a": 1})
    assert sorted(tmp_path.rglob("*.parquet")) == sorted(kept)


def test_without_bounds_nothing_goes(tmp_path):
    lay(tmp_path, 4_000)
    assert Retention(bytes=0, days=0).sweep(tmp_path, NOW) == (100, {})


def test_files_of_an_older_layout_are_swept_too_and_what_is_not_feedback_never(tmp_path):
    (tmp_path / "a").mkdir()
    older = tmp_path / "a" / "part-20200101T000000000000Z-7-1.parquet"
    others = [tmp_path / "a" / "outcomes.parquet", tmp_path / "part-mine.parquet"]
    for path in (older, *others):
        path.write_bytes(b"x")
    assert Retention(days=1).sweep(tmp_path, NOW) == (0, {"a": 1})
    assert all(path.exists() for path in others)


def test_temporary_files_of_killed_writers_are_swept_and_fresh_ones_are_not(tmp_path):
    whole = lay(tmp_path, 0)
    stale, fresh, foreign = (
        whole.with_name(f".{whole.name}.abc"),
        whole.with_name(f".{whole.name}.def"),
        whole.with_name(".part-notes"),
    )
    for path in (stale, fresh, foreign):
        path.write_bytes(b"half")
    for path in (stale, foreign):
        os.utime(path, (time.time() - 3600,) * 2)
    Retention().sweep(tmp_path, NOW)
    assert [p.exists() for p in (whole, stale, fresh, foreign)] == [True, False, True, True]


def test_a_directory_that_is_none_is_empty(tmp_path):
    assert Retention().sweep(tmp_path / "none", NOW) == (0, {})


@pytest.mark.parametrize("bound", [{"bytes": -1}, {"days": -1}])
def test_a_negative_bound_is_refused(bound):
    with pytest.raises(ValueError, match=r"feedback_\w+: found -1, allowed: 0 for no bound"):
        Retention(**bound)
