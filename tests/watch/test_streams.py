"""What is seen of a stream: figures, what is wrong, and the page for Prometheus."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drivetrain.watch.exposition import parse
from drivetrain.watch.streams import SILENT, StreamWatch

SAID: dict[str, Any] = {
    "at": 1000.0,
    "name": "made",
    "pid": os.getpid(),
    "ended": False,
    "rows": 12_345,
    "rows_per_s": 678.9,
    "lag": 42,
    "latency_ms": {"p50": 12.4, "p99": 98.6},
    "dead_letters": 3,
    "version": 7,
    "problem": None,
}


def watch(folder: Path, at: float = 1001.0, **changed: Any) -> StreamWatch:
    path = folder / "status.json"
    path.write_text(json.dumps(SAID | changed))
    return StreamWatch("made", path, lambda: at)


def test_a_look_is_one_line_of_figures(tmp_path: Path) -> None:
    out = io.StringIO()
    assert watch(tmp_path).run(once=True, stream=out) == 0
    assert out.getvalue() == (
        "1970-01-01T00:16:41+00:00 made; rows 12,345; rows/s 679; lag 42; latency p50 12 ms; "
        "p99 99 ms; dead letters 3; version 7\n"
    )


def test_a_look_as_json_has_all_that_the_runner_said(tmp_path: Path) -> None:
    out = io.StringIO()
    assert watch(tmp_path).run(once=True, json=True, stream=out) == 0
    assert json.loads(out.getvalue())["said"] == SAID


def gone() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("changed", "at", "says"),
    [
        ({"ended": True}, 1001.0, "has ended"),
        ({"problem": "b:9092 does not answer: waiting"}, 1001.0, "b:9092 does not answer"),
        ({}, 1000.0 + 2 * SILENT, "has said nothing for 60 s"),
        ({"pid": None}, 1001.0, "is gone: start it again"),
    ],
)
def test_what_is_wrong_is_told_and_is_the_status(
    changed: dict[str, Any], at: float, says: str, tmp_path: Path
) -> None:
    if "pid" in changed:
        changed = {"pid": gone()}
    out = io.StringIO()
    assert watch(tmp_path, at, **changed).run(once=True, stream=out) == 1
    assert "PROBLEM" in out.getvalue()
    assert says in out.getvalue()


def test_a_stream_that_nobody_has_begun_is_told(tmp_path: Path) -> None:
    look = StreamWatch("made", tmp_path / "status.json").look()
    assert look.problems == ("no runner has begun it here",)


def test_the_page_for_prometheus_has_every_figure_that_is_known(tmp_path: Path) -> None:
    found = parse(watch(tmp_path).look().gauges())
    values = {(s.name, s.labels.get("quantile")): s.value for s in found}
    assert values == {
        ("drivetrain_stream_rows", None): 12_345,
        ("drivetrain_stream_rows_per_second", None): 678.9,
        ("drivetrain_stream_lag", None): 42,
        ("drivetrain_stream_dead_letters", None): 3,
        ("drivetrain_stream_latency_ms", "0.5"): 12.4,
        ("drivetrain_stream_latency_ms", "0.99"): 98.6,
    }
    kept = watch(tmp_path, window_keys=12, window_bytes=3456).look()
    assert "window keys 12; window bytes 3,456; version 7" in kept.line()
    values = {s.name: s.value for s in parse(kept.gauges())}
    assert values["drivetrain_stream_window_keys"] == 12
    assert values["drivetrain_stream_window_bytes"] == 3456
    none = watch(tmp_path, lag=None, latency_ms={"p50": None, "p99": None}).look().gauges()
    assert {s.name for s in parse(none)} == {
        "drivetrain_stream_rows",
        "drivetrain_stream_rows_per_second",
        "drivetrain_stream_dead_letters",
    }
