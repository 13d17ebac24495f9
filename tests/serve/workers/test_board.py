"""Shared memory: whole texts over forks, whatever happens to their writers."""

import os
import signal
import sys
from itertools import pairwise

import pytest

from drivetrain.serve.workers import board as module
from drivetrain.serve.workers.board import Board

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")


def test_the_last_text_of_each_seat_is_read_and_none_is_empty():
    board = Board(2)
    assert board.read(0) == b""
    for number in range(5):
        board.write(1, b"%d" % number * number)
        assert board.read(1) == b"%d" % number * number
    assert board.read(0) == b""


def test_a_write_that_broke_off_leaves_the_text_before():
    board = Board(1)
    board.write(0, b"whole")
    start = board._start(0, 0)
    for cut in range(1, 30):
        board._map[start : start + cut] = os.urandom(cut)
        assert board.read(0) == b"whole"
    board.write(0, b"next")
    assert board.read(0) == b"next"


def test_a_text_that_is_too_long_is_refused_and_the_one_before_stays():
    board = Board(1)
    board.write(0, b"short")
    with pytest.raises(ValueError, match="allowed"):
        board.write(0, bytes(module._BYTES))
    assert board.read(0) == b"short"


def test_a_reader_sees_only_whole_texts_of_a_writer_in_another_process_that_is_killed():
    board = Board(1)
    pid = os.fork()
    if not pid:
        try:
            while True:
                for letter in range(1, 256):
                    board.write(0, bytes([letter]) * (letter * 40))
        finally:
            os._exit(0)
    try:
        while not board.read(0):
            os.sched_yield()
        found = [board.read(0) for _ in range(3000)]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    found.append(board.read(0))
    assert all(len(set(text)) < 2 and (not text or len(text) == text[0] * 40) for text in found)
    assert b"" not in found


def test_a_seat_is_live_only_while_someone_sits_there():
    board = Board(2)
    board.take(1, True)
    assert (board.live(0), board.live(1)) == (False, True)
    board.take(1, False)
    assert not board.live(1)


def test_a_pulse_changes_with_each_beat_of_its_seat_and_no_other():
    board = Board(2)
    seen = []
    for _ in range(300):
        board.beat(1)
        seen.append(board.pulse(1))
    assert all(a != b for a, b in pairwise(seen))
    assert board.pulse(0) == 0
    assert not board.live(0)
    assert board.read(1) == b""
