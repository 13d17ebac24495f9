"""What people and programs see of the stream."""

import io
import json
import os
import subprocess
import sys

import pytest

from drivetrain.core.metric import Metric, Note, Progress
from drivetrain.watch.terminal import JsonLines, Terminal, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Gone(io.StringIO):
    """A stream whose reader has gone, as a pipe says it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        raise BrokenPipeError


@pytest.fixture
def plain():
    stream, clock = io.StringIO(), Clock()
    return Terminal(stream, clock=clock), stream, clock


def test_without_a_terminal_there_are_plain_lines(plain):
    terminal, stream, _ = plain
    terminal(Note(stage="train", text="begins"))
    terminal(Note(stage="train", text="no GPU here", warning=True))
    terminal(Metric(name="test/auc", value=0.75, at_least=0.7))
    assert stream.getvalue().splitlines() == [
        "train: begins",
        "train: warning: no GPU here",
        "test/auc 0.75 (at least 0.7)",
    ]


def test_a_fast_stage_writes_one_line(plain):
    terminal, stream, clock = plain
    for done in range(1001):
        clock.now += 0.0005
        terminal(Progress(stage="events", done=done, total=1000))
    assert stream.getvalue() == "events: 100%, 1,000/1,000 rows, 2,000 rows/s\n"


def test_a_stage_of_a_minute_writes_a_line_every_tenth_with_rate_and_remaining_time(plain):
    terminal, stream, clock = plain
    for done in range(601):
        terminal(Progress(stage="train", done=done, total=600, unit="steps"))
        clock.now += 0.05
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "train: 10%, 60/600 steps, 20 steps/s, 0:27 left"
    assert lines[-1] == "train: 100%, 600/600 steps, 20 steps/s"


def test_a_slow_stage_writes_a_line_every_five_seconds(plain):
    terminal, stream, clock = plain
    for done in range(31):
        terminal(Progress(stage="train", done=done, total=10_000, unit="steps"))
        clock.now += 1.0
    lines = stream.getvalue().splitlines()
    assert len(lines) == 6
    assert "1 steps/s" in lines[0]


def test_an_unknown_total_has_a_rate_and_no_remaining_time(plain):
    terminal, stream, clock = plain
    for done in (0, 1_000):
        terminal(Progress(stage="read", done=done))
        clock.now += 10
    terminal(Progress(stage="read", done=2_000))
    assert stream.getvalue().splitlines()[-1] == "read: 2,000 rows, 100 rows/s"


def test_a_resumed_stage_does_not_count_what_was_done_before_in_its_rate(plain):
    terminal, stream, clock = plain
    terminal(Progress(stage="train", done=900, total=1_000))
    clock.now += 10
    terminal(Progress(stage="train", done=1_000, total=1_000))
    assert "10 rows/s" in stream.getvalue()


def test_a_stage_that_starts_again_tells_its_end_again(plain):
    terminal, stream, _ = plain
    for _ in range(2):
        for done in (0, 5, 5):
            terminal(Progress(stage="read", done=done, total=5))
    assert len(stream.getvalue().splitlines()) == 2


def test_the_newest_figure_of_a_series_comes_with_the_next_line_of_progress(plain):
    terminal, stream, clock = plain
    terminal(Progress(stage="train", done=0, total=10))
    for step in range(100):
        terminal(Metric(name="train/loss", value=1 / (step + 1), step=step))
    clock.now += 2
    terminal(Progress(stage="train", done=5, total=10))
    terminal(Metric(name="validate/auc", value=0.7, step=100))
    terminal.close()
    first, last = stream.getvalue().splitlines()
    assert first.endswith("train/loss 0.01")
    assert last == "validate/auc 0.7"


def test_a_reader_that_goes_away_does_not_end_the_run():
    note = Note(stage="train", text="x" * 100)
    gone = Gone()
    for listener in (Terminal(gone), JsonLines(gone)):
        for _ in range(3):
            listener(note)
    assert gone.writes == 2, "each listener writes until it hears that nobody reads"
    closed = io.StringIO()
    closed.close()
    JsonLines(closed)(note)
    assert closed.closed


def test_bars_show_stage_count_figure_and_notes_above():
    stream = io.StringIO()
    with Terminal(stream, bars=True) as terminal:
        terminal(Note(stage="train", text="[not markup] begins", warning=True))
        terminal(Metric(name="train/loss", value=0.123456, step=3))
        terminal(Progress(stage="read", done=7))
        terminal(Progress(stage="train", done=0, total=1_000))
        terminal(Progress(stage="train", done=1_000, total=1_000))
        terminal(Metric(name="train/loss", value=0.25, step=4))
    shown = stream.getvalue()
    assert "train: warning: [not markup] begins" in shown
    assert "1,000 rows" in shown
    assert "loss 0.25" in shown
    assert shown.count("100%") == 2  # the stage of unknown length is settled too


@pytest.mark.slow
def test_a_real_terminal_gets_bars_and_its_cursor_back():
    import pty

    code = (
        "import sys; from drivetrain.core.metric import Progress;"
        "from drivetrain.watch.terminal import Terminal\n"
        "with Terminal(sys.stderr) as t:\n"
        "    for i in range(11): t(Progress(stage='train', done=i, total=10))\n"
    )
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=follower, stdout=follower, env=environment
    ) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 4096)
            except OSError:
                break
            if not part:
                break
            shown += part
        assert process.wait() == 0
    os.close(leader)
    assert "━".encode() in shown
    assert b"100%" in shown
    assert b"\x1b[?25h" in shown  # the cursor is shown again


def test_json_lines_are_one_object_an_item():
    stream = io.StringIO()
    listener = JsonLines(stream, clock=lambda: 12.3456)
    listener(Metric(name="test/auc", value=0.5, at_least=0.7))
    listener(Metric(name="train/loss", value=float("nan"), step=3))
    listener(Progress(stage="train", done=3, total=None))
    listener(Note(stage="train", text="zwölf\nlines"))
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert found == [
        {
            "type": "metric",
            "at": 12.346,
            "name": "test/auc",
            "value": 0.5,
            "at_least": 0.7,
            "repeatable": True,
            "holds": False,
        },
        {
            "type": "metric",
            "at": 12.346,
            "name": "train/loss",
            "value": None,
            "step": 3,
            "repeatable": True,
        },
        {"type": "progress", "at": 12.346, "stage": "train", "done": 3, "unit": "rows"},
        {"type": "note", "at": 12.346, "stage": "train", "text": "zwölf\nlines", "warning": False},
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (3_725, "1:02:05")])
def test_durations_read_as_clocks_do(seconds, text):
    assert duration(seconds) == text
