"""The log and its snapshots: what was appended is there again, a torn end is cut off, damage is
an error."""

import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.serve.state.journal import DamagedError, Journal


def opened(room):
    """A journal, and what it found."""
    journal = Journal(room)
    found = (journal.snapshot(), list(journal.frames()))
    journal.begin()
    return journal, found


def written(room, frames):
    journal, _ = opened(room)
    for frame in frames:
        journal.append(frame)
    journal.close()
    return sorted(room.glob("*.log"))[-1]


def test_what_was_appended_is_there_again(tmp_path):
    journal, found = opened(tmp_path)
    assert found == (None, [])
    journal.append(b"one")
    journal.append(b"")
    journal.close()
    journal, found = opened(tmp_path)
    assert found == (None, [b"one", b""])
    journal.append(b"two")
    journal.close()
    assert opened(tmp_path)[1] == (None, [b"one", b"", b"two"])


def test_a_snapshot_takes_the_place_of_the_logs_before_it(tmp_path):
    journal, _ = opened(tmp_path)
    journal.append(b"one")
    number = journal.turn()
    journal.append(b"two")
    before = journal.size
    journal.keep(number, b"state")
    assert journal.size < before
    journal.append(b"three")
    journal.close()
    assert len(list(tmp_path.glob("*.log"))) == 1
    journal, found = opened(tmp_path)
    assert found == (b"state", [b"two", b"three"])
    journal.close()


def test_a_log_whose_snapshot_was_never_written_goes_on_behind_the_one_before(tmp_path):
    journal, _ = opened(tmp_path)
    journal.append(b"one")
    journal.turn()
    journal.append(b"two")
    journal.turn()
    journal.close()
    journal, found = opened(tmp_path)
    assert found == (None, [b"one", b"two"])
    journal.append(b"three")
    journal.close()
    assert opened(tmp_path)[1] == (None, [b"one", b"two", b"three"])


FRAMES = [b"first", b"second " * 20, b"third"]


@given(st.data())
@settings(max_examples=60)
def test_a_log_that_was_cut_gives_what_was_whole(tmp_path_factory, data):
    room = tmp_path_factory.mktemp("cut")
    log = written(room, FRAMES)
    size = log.stat().st_size
    ends = [size - sum(24 + len(f) for f in FRAMES[n:]) for n in range(len(FRAMES) + 1)]
    at = data.draw(st.integers(ends[0], size))
    os.truncate(log, at)
    journal, found = opened(room)
    whole = sum(end <= at for end in ends) - 1
    assert found == (None, FRAMES[:whole])
    journal.append(b"more")
    journal.close()
    assert opened(room)[1] == (None, [*FRAMES[:whole], b"more"])


@given(st.data())
@settings(max_examples=60)
def test_a_damaged_byte_is_an_error_but_in_the_last_record(tmp_path_factory, data):
    room = tmp_path_factory.mktemp("damaged")
    log = written(room, FRAMES)
    content = bytearray(log.read_bytes())
    last = len(content) - 24 - len(FRAMES[-1])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    log.write_bytes(content)
    if at < last:
        with pytest.raises(DamagedError, match=str(log)):
            opened(room)
    else:
        assert opened(room)[1] == (None, FRAMES[:-1])


def test_a_damaged_log_before_the_last_is_an_error(tmp_path):
    journal, _ = opened(tmp_path)
    journal.append(b"one")
    journal.turn()
    journal.close()
    first = min(tmp_path.glob("*.log"))
    os.truncate(first, first.stat().st_size - 1)
    with pytest.raises(DamagedError, match="damaged record"):
        opened(tmp_path)


def test_a_log_that_is_gone_is_an_error(tmp_path):
    journal, _ = opened(tmp_path)
    number = journal.turn()
    journal.keep(number, b"state")
    journal.turn()
    journal.close()
    min(tmp_path.glob("*.log")).unlink()
    with pytest.raises(DamagedError, match="found none"):
        opened(tmp_path)


def test_a_damaged_snapshot_is_an_error(tmp_path):
    journal, _ = opened(tmp_path)
    journal.keep(journal.turn(), b"state")
    journal.close()
    (snapshot,) = tmp_path.glob("*.snapshot")
    snapshot.write_bytes(snapshot.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedError, match="checksum"):
        opened(tmp_path)


def test_a_second_process_is_refused(tmp_path):
    journal, _ = opened(tmp_path)
    with pytest.raises(ValueError, match="found another server"):
        Journal(tmp_path)
    journal.close()
    opened(tmp_path)[0].close()


def test_what_a_full_disk_did_not_take_is_not_there_and_the_next_is(tmp_path, monkeypatch):
    journal, _ = opened(tmp_path)
    journal.append(b"one")
    real = os.pwrite

    def full(file, data, at):
        real(file, bytes(data)[: len(data) // 2], at)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        journal.append(b"two")
    monkeypatch.setattr(os, "pwrite", real)
    journal.append(b"three")
    journal.close()
    assert opened(tmp_path)[1] == (None, [b"one", b"three"])


def test_a_disk_that_cannot_even_be_cut_is_tried_again_before_the_next(tmp_path, monkeypatch):
    journal, _ = opened(tmp_path)
    real = os.fdatasync

    def fails(file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            journal.append(b"lost")
    monkeypatch.setattr(os, "fdatasync", real)
    journal.append(b"kept")
    journal.close()
    assert opened(tmp_path)[1] == (None, [b"kept"])


def test_a_torn_end_is_cut_off_before_a_newer_log_is_begun(tmp_path, monkeypatch):
    journal, _ = opened(tmp_path)
    journal.append(b"one")
    write = os.pwrite

    def torn(file, data, at):
        write(file, bytes(data)[: len(data) // 2], at)
        raise OSError(errno.EIO, "Input/output error")

    def fails(file, size):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", torn)
        patched.setattr(os, "ftruncate", fails)
        with pytest.raises(OSError, match="Read-only"):
            journal.append(b"lost")
        with pytest.raises(OSError, match="Read-only"):
            journal.turn()
    journal.turn()
    journal.append(b"two")
    journal.close()
    assert opened(tmp_path)[1] == (None, [b"one", b"two"])


def test_where_no_newer_log_can_be_opened_the_one_before_goes_on(tmp_path, monkeypatch):
    journal, _ = opened(tmp_path)
    journal.append(b"one")

    def fails(number):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(journal, "_opened", fails)
        with pytest.raises(OSError, match="Too many"):
            journal.turn()
    journal.append(b"two")
    assert len(list(tmp_path.glob("*.log"))) == 1
    journal.close()
    assert opened(tmp_path)[1] == (None, [b"one", b"two"])


def test_what_a_killed_process_left_half_written_is_deleted(tmp_path):
    opened(tmp_path)[0].close()
    (tmp_path / ".0000000002.snapshot.x1y2").write_bytes(b"half")
    opened(tmp_path)[0].close()
    assert not list(tmp_path.glob(".0*"))
