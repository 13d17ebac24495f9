"""The access log: whole lines whatever clients send, and a bound when nobody takes them."""

import io
import json
import logging
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from drivetrain.serve.telemetry.access import AccessLog
from drivetrain.serve.telemetry.family import Counter


def entry(number=0, target="/v2", request_id=""):
    return {"number": number, "target": target, "request_id": request_id}


def test_every_entry_is_a_line_in_order():
    stream, dropped = io.StringIO(), Counter()
    access = AccessLog(stream, dropped)
    for number in range(1000):
        access(entry(number))
    access.close()
    lines = stream.getvalue().splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(1000))
    assert dropped.value == 0


@given(st.text(), st.text())
def test_no_text_of_a_client_makes_a_second_line_or_leaves_ascii(target, request_id):
    stream = io.StringIO(newline="")
    access = AccessLog(stream, Counter())
    access(entry(target=target, request_id=request_id))
    access.close()
    text = stream.getvalue()
    assert text.isascii()
    assert text.count("\n") == 1
    assert not any(ord(letter) < 32 for letter in text[:-1])
    assert json.loads(text) == entry(target=target, request_id=request_id)


def test_a_stream_that_blocks_holds_nobody_up_and_what_it_cannot_take_is_counted():
    reads, writes = os.pipe()
    dropped = Counter()
    with open(writes, "w") as stream:
        access = AccessLog(stream, dropped, most=200_000)
        sent = 0
        while not dropped.value:  # the pipe is full, then the memory
            access(entry(sent, target="/" + "x" * 1000))
            sent += 1
            if sent % 50 == 0:
                time.sleep(0.05)
            assert sent < 5000
        held = access._held
        assert held <= 200_000
        read = bytearray()

        def take():
            while part := os.read(reads, 1 << 16):
                read.extend(part)

        taker = threading.Thread(target=take)
        taker.start()
        wait_until(lambda: access._held == 0)
        access(entry(-1))
        access.close()
    taker.join()
    os.close(reads)
    numbers = [json.loads(line)["number"] for line in read.splitlines()]
    assert len(numbers) == sent - dropped.value + 1
    assert numbers[-1] == -1


def test_lines_go_out_in_writes_that_a_pipe_takes_whole():
    sizes = []

    class Stream(io.StringIO):
        def write(self, text):
            sizes.append(len(text))
            return super().write(text)

    stream = Stream()
    access = AccessLog(stream, Counter())
    for number in range(300):
        access(entry(number, target="/" + "y" * 90))
    access.close()
    assert stream.getvalue().count("\n") == 300
    assert max(sizes) <= 4096
    assert len(sizes) < 30


def test_a_stream_that_fails_is_told_once_and_its_lines_are_counted(caplog):
    class Full(io.StringIO):
        full = True

        def flush(self):
            if self.full:
                raise OSError(28, "No space left on device")

    stream, dropped = Full(), Counter()
    access = AccessLog(stream, dropped)
    with caplog.at_level(logging.ERROR, "drivetrain.serve"):
        for number in range(100):
            access(entry(number, target="/" + "z" * 100))
        wait_until(lambda: dropped.value == 100)
        stream.full = False
        access(entry(7))
        access.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the access log cannot be written"
    ]
    assert dropped.value == 100


def test_closing_does_not_wait_for_a_stream_that_takes_nothing(caplog):
    freed = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text):
            freed.wait(20)
            return len(text)

    access = AccessLog(Stuck(), Counter())
    access(entry())
    started = time.monotonic()
    with caplog.at_level(logging.ERROR, "drivetrain.serve"):
        access.close()
    assert time.monotonic() - started < 10
    assert "takes nothing" in caplog.text
    freed.set()
    access._thread.join()


@pytest.mark.parametrize("size", [1, 200_000])
def test_a_line_of_any_length_comes_through(size):
    stream = io.StringIO()
    access = AccessLog(stream, Counter())
    access(entry(target="/" + "x" * size))
    access.close()
    assert len(json.loads(stream.getvalue())["target"]) == size + 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_does_not_fail_the_end_of_the_server(caplog):
    dropped = Counter()
    access = AccessLog(Path("/dev/full"), dropped)
    access(entry())
    access.close()
    assert dropped.value == 1
    assert "the access log cannot be written" in caplog.text
