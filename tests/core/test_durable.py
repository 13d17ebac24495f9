"""What whole-or-absent writes leave behind when they are interrupted."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from drivetrain.core import durable


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path):
    file = tmp_path / "deep" / "file"
    durable.write(file, b"old")
    durable.write(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(file.parent.iterdir()) == [file]


def test_what_is_written_can_be_read_by_others(tmp_path: Path):
    durable.write(tmp_path / "file", b"")
    with durable.directory(tmp_path / "made"):
        pass
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o755


def test_a_failed_write_leaves_the_old_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "file"
    durable.write(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        durable.write(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_directory_appears_when_its_block_ends_well(tmp_path: Path):
    place = tmp_path / "store" / "made"
    with durable.directory(place) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_bytes(b"x")
        assert not place.exists()
    assert (place / "inner" / "file").read_bytes() == b"x"
    assert list(place.parent.iterdir()) == [place]


def test_a_directory_whose_block_fails_never_was(tmp_path: Path):
    with suppress(KeyError), durable.directory(tmp_path / "made") as temporary:
        (temporary / "file").write_bytes(b"x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_stands(tmp_path: Path):
    with durable.directory(tmp_path / "made") as late:
        (late / "file").write_bytes(b"late")
        with durable.directory(tmp_path / "made") as early:
            (early / "file").write_bytes(b"early")
    assert (tmp_path / "made" / "file").read_bytes() == b"early"
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_a_file_in_the_place_of_the_directory_is_an_error(tmp_path: Path):
    (tmp_path / "made").write_bytes(b"kept")
    with pytest.raises(OSError), durable.directory(tmp_path / "made"):
        pass
    assert (tmp_path / "made").read_bytes() == b"kept"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["filling", "syncing"])
def test_kill_9_leaves_no_half_directory(tmp_path: Path, moment: str):
    code = """
import signal, sys
from pathlib import Path
from drivetrain.core import durable
def stop(path=None):
    print("ready", flush=True)
    signal.pause()
if sys.argv[2] == "syncing":
    durable.sync = stop
with durable.directory(Path(sys.argv[1]) / "made") as temporary:
    (temporary / "file").write_bytes(b"half")
    if sys.argv[2] == "filling":
        stop()
"""
    command = [sys.executable, "-c", code, str(tmp_path), moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
    assert not (tmp_path / "made").exists()
    assert all(p.name.startswith(".made.") for p in tmp_path.iterdir())
    with durable.directory(tmp_path / "made") as temporary:
        (temporary / "file").write_bytes(b"whole")
    assert (tmp_path / "made" / "file").read_bytes() == b"whole"
