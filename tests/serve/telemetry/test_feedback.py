"""Requests and answers as events: what was sent and said, whole files, bounded memory."""

import gc
import os
import shutil
import subprocess
import threading
import time
import weakref
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.serve.telemetry.feedback import Feedback
from drivetrain.serve.telemetry.metrics import Metrics
from drivetrain.serve.telemetry.retention import Retention

ROWS = [
    {"carrier": "AA", "distance": 733.5, "hour": 7},
    {"carrier": None, "distance": None, "hour": None},
    {"carrier": "β", "distance": 0.25, "hour": 23},
]


def events(directory):
    files = sorted(directory.glob("*/*/*.parquet"))
    return [event for file in files for event in pq.read_table(file).to_pylist()]


def wait_for(directory, rows):
    deadline = time.monotonic() + 10
    while len(found := events(directory)) < rows and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


class Toy:
    """What feedback needs to know of a model."""

    name, version = "toy", "v1"

    def __init__(self, *inputs):
        self.inputs = self.whole = Schema(inputs)
        outputs = Schema((Field("late", "float32"),))
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(outputs=outputs))


def test_the_events_are_what_was_sent_and_answered(serve, tiny, tmp_path):
    client = serve(feedback=tmp_path)
    before = datetime.now(UTC).replace(tzinfo=None)
    headers = {"X-Request-Id": "one"}
    client.post("/predict/tiny", {"rows": ROWS}, headers=headers)
    tensors = [
        {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": ["UA"]},
        {"name": "distance", "datatype": "FP32", "shape": [1], "data": [1.0]},
        {"name": "hour", "datatype": "INT64", "shape": [1], "data": [3]},
    ]
    client.post("/v2/models/tiny/infer", {"id": "two three", "inputs": tensors})
    client.post("/predict/tiny", {"carrier": "AA"})
    made = client.post("/predict/tiny", ROWS[0]).headers["x-request-id"]
    client.server.stop()
    found = wait_for(tmp_path, 5)
    late = tiny.predict([*ROWS, {"carrier": "UA", "distance": 1.0, "hour": 3}, ROWS[0]])["late"]
    assert [event["request_id"] for event in found] == ["one", "one", "one", "two three", made]
    assert [event["row"] for event in found] == [0, 1, 2, 0, 0]
    assert [{n: event[n] for n in ROWS[0]} for event in found[:3]] == ROWS
    assert found[3]["carrier"] == "UA"
    assert [np.float32(event["prediction.late"]) for event in found] == late.tolist()
    assert {(event["model"], event["role"]) for event in found} == {("tiny", "stable")}
    assert {event["version"] for event in found} == {tiny.digest[:12]}
    now = datetime.now(UTC).replace(tzinfo=None)
    assert all(before <= event["at"] <= now for event in found)
    assert all(0 < event["latency_us"] < 5_000_000 for event in found)


def test_the_files_have_declared_types_and_no_half_written_ones_show(tmp_path):
    feedback = Feedback(tmp_path, Metrics())
    feedback.offer(
        Toy(Field("at", "timestamp"), Field("blob", "bytes"), Field("pixels", "float32", (2,))),
        "r",
        0.001,
        [
            np.array([5, MISSING_INT]),
            np.array([b"x", b""], object),
            np.array([[1, 2], [3, 4]], np.float32),
        ],
        [np.array([0.5, np.nan], np.float32)],
    )
    feedback.close()
    (file,) = tmp_path.glob("toy/*/*")
    table = pq.read_table(file)
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        "request_id": "string", "row": "int64", "served.at": "timestamp[us]", "model": "string",
        "version": "string", "role": "string", "latency_us": "int64",
        "at": "timestamp[us]", "blob": "binary",
        "pixels": "fixed_size_list<element: float>[2]", "prediction.late": "float",
    }  # fmt: skip
    assert table["at"].null_count == table["blob"].null_count == 1
    assert table["prediction.late"].to_pylist() == [0.5, None]
    assert table["pixels"].to_pylist() == [[1, 2], [3, 4]]


def test_a_file_appears_within_its_seconds_while_the_server_runs(tmp_path):
    metrics = Metrics()
    feedback = Feedback(tmp_path, metrics, seconds=0.1)
    try:
        arrays = [np.array([1])], [np.array([0.5], np.float32)]
        feedback.offer(Toy(Field("x", "int64")), "r", 0.001, *arrays)
        assert [event["x"] for event in wait_for(tmp_path, 1)] == [1]
    finally:
        feedback.close()
    assert metrics.feedback_rows.of("toy").value == 1


def test_rows_beyond_the_bound_are_dropped_and_counted(tmp_path):
    metrics = Metrics()
    feedback = Feedback(tmp_path, metrics, queue_rows=5)
    toy = Toy(Field("x", "int64"))
    for start in range(4):
        arrays = [np.array([start, start])], [np.zeros(2, np.float32)]
        feedback.offer(toy, "r", 0.001, *arrays)
    feedback.close()
    assert [event["x"] for event in events(tmp_path)] == [0, 0, 1, 1]
    assert metrics.feedback_rows.of("toy").value == 4
    assert metrics.feedback_dropped.of("toy").value == 4


def test_rows_that_cannot_be_written_are_counted_and_the_server_goes_on(tmp_path, caplog):
    metrics = Metrics()
    feedback = Feedback(tmp_path, metrics, seconds=0.1)
    (tmp_path / "toy").write_text("a file where a directory should be")
    toy = Toy(Field("x", "int64"))
    feedback.offer(toy, "r", 0.001, [np.array([1])], [np.zeros(1, np.float32)])
    feedback.close()
    assert metrics.feedback_dropped.of("toy").value == 1
    assert "could not be written" in caplog.text


def test_events_that_no_table_can_hold_are_counted_and_the_next_are_written(tmp_path, caplog):
    metrics = Metrics()
    feedback = Feedback(tmp_path, metrics, seconds=0.1)
    good, odd = Toy(Field("x", "int64")), Toy(Field("x", "int64"))
    odd.version = "v0"
    feedback.offer(odd, "r", 0.001, [np.array([[1, 2]])], [np.zeros(1, np.float32)])
    feedback.offer(good, "r", 0.001, [np.array([7])], [np.zeros(1, np.float32)])
    feedback.close()
    assert [event["x"] for event in events(tmp_path)] == [7]
    assert metrics.feedback_dropped.of("toy").value == metrics.feedback_rows.of("toy").value == 1
    assert "could not be made a table" in caplog.text


def test_no_directory_no_server(serve, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        serve(feedback=tmp_path / "file" / "events")


def offer(feedback, model, rows=1, request="r", **options):
    arrays = [np.arange(rows)], [np.zeros(rows, np.float32)]
    feedback.offer(model, request, 0.001, *arrays, **options)


def test_bytes_beyond_the_bound_are_dropped_and_counted_and_let_go_when_written(tmp_path):
    metrics = Metrics()
    feedback = Feedback(tmp_path, metrics, queue_bytes=20_000, seconds=0.1)
    toy = Toy(Field("blob", "bytes"))
    try:
        for turn in (1, 2):
            for _ in range(3):  # the third finds 18 kB held
                blob = np.array([b"x" * 8_000], object)
                feedback.offer(toy, "r", 0.001, [blob], [np.zeros(1, np.float32)])
            assert metrics.feedback_dropped.of("toy").value == turn
            assert len(wait_for(tmp_path, 2 * turn)) == 2 * turn
    finally:
        feedback.close()


def test_what_a_shadow_said_lies_apart_and_every_row_tells_its_role(tmp_path):
    feedback = Feedback(tmp_path, Metrics())
    for role in ("stable", "canary", "shadow"):
        offer(feedback, Toy(Field("x", "int64")), role=role)
    feedback.close()
    assert sorted(event["role"] for event in events(tmp_path)) == ["canary", "stable"]
    (apart,) = (tmp_path / "_shadow").glob("toy/date=*/*.parquet")
    assert pq.read_table(apart)["role"].to_pylist() == ["shadow"]


def test_files_lie_in_the_directory_of_their_utc_day(tmp_path):
    before = datetime.now(UTC)
    feedback = Feedback(tmp_path, Metrics())
    offer(feedback, Toy(Field("x", "int64")))
    feedback.close()
    (file,) = tmp_path.glob("toy/*/*.parquet")
    days = {f"date={day:%Y-%m-%d}" for day in (before, datetime.now(UTC))}
    assert file.parent.name in days


def test_each_file_of_a_version_waits_twice_as_long_as_the_one_before(tmp_path):
    feedback = Feedback(tmp_path, Metrics(), seconds=0.1, longest=600)
    toy = Toy(Field("x", "int64"))
    try:
        for turn in range(1, 4):
            offer(feedback, toy)
            assert len(wait_for(tmp_path, turn)) == turn
        assert feedback._waits[("toy", "v1", False)] == pytest.approx(0.8)
    finally:
        feedback.close()
    assert len(list(tmp_path.glob("toy/*/*.parquet"))) == 3


def test_a_version_that_is_unloaded_is_not_kept_by_its_events(tmp_path):
    feedback = Feedback(tmp_path, Metrics(), seconds=600)
    toy = Toy(Field("x", "int64"))
    gone = weakref.ref(toy)
    try:
        offer(feedback, toy)
        del toy
        gc.collect()
        assert gone() is None
    finally:
        feedback.close()
    assert [event["x"] for event in events(tmp_path)] == [0]


def test_open_files_of_several_versions_do_not_keep_out_what_comes(tmp_path):
    metrics = Metrics()
    feedback = Feedback(tmp_path, metrics, queue_rows=100, seconds=600)
    try:
        for version in range(8):
            toy = Toy(Field("x", "int64"))
            toy.version = f"v{version}"
            for _ in range(3):
                offer(feedback, toy, rows=10)
            wait_for(tmp_path, 30 * version)
        assert metrics.feedback_dropped.of("toy").value < 100
        assert metrics.feedback_rows.of("toy").value >= 100
    finally:
        feedback.close()


def test_a_removed_directory_is_made_again(tmp_path):
    metrics = Metrics()
    place = tmp_path / "events"
    feedback = Feedback(place, metrics, seconds=0.1)
    try:
        offer(feedback, Toy(Field("x", "int64")))
        assert len(wait_for(place, 1)) == 1
        shutil.rmtree(place)
        offer(feedback, Toy(Field("x", "int64")))
        assert len(wait_for(place, 1)) == 1
    finally:
        feedback.close()
    assert metrics.feedback_rows.of("toy").value == 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_drops_and_counts_and_what_comes_later_is_kept(small_disk, caplog):
    metrics = Metrics()
    feedback = Feedback(small_disk, metrics, seconds=0.1, longest=0.1)
    toy = Toy(Field("x", "int64"))
    try:
        with (small_disk / "ballast").open("wb") as ballast, suppress(OSError):
            ballast.write(b"x" * (1 << 20))
        offer(feedback, toy)
        deadline = time.monotonic() + 10
        while not metrics.feedback_dropped.of("toy").value and time.monotonic() < deadline:
            time.sleep(0.02)
        assert metrics.feedback_dropped.of("toy").value == 1
        assert "No space left" in caplog.text
        (small_disk / "ballast").unlink()
        offer(feedback, toy, rows=2)
        assert len(wait_for(small_disk, 2)) == 2
    finally:
        feedback.close()
    assert not list(small_disk.rglob(".*"))


def test_the_writer_deletes_the_oldest_files_beyond_the_bound_and_counts_them(tmp_path):
    metrics = Metrics()
    options = {"seconds": 0.05, "longest": 0.05, "retention": Retention(bytes=9_000)}
    feedback = Feedback(tmp_path, metrics, **options)
    toy = Toy(Field("x", "int64"))
    try:
        for turn in range(1, 9):
            offer(feedback, toy, request=f"r{turn}")
            deadline = time.monotonic() + 10
            while metrics.feedback_rows.of("toy").value < turn and time.monotonic() < deadline:
                time.sleep(0.01)
    finally:
        feedback.close()
    left = [event["request_id"] for event in events(tmp_path)]
    assert left == [f"r{turn}" for turn in range(9 - len(left), 9)]
    assert 0 < len(left) < 8
    assert sum(p.stat().st_size for p in tmp_path.rglob("*.parquet")) <= 9_000
    assert metrics.feedback_deleted.of("toy").value == 8 - len(left)


def test_a_disk_that_is_away_does_not_keep_the_server_from_its_end(tmp_path, monkeypatch, caplog):
    freed = threading.Event()
    monkeypatch.setattr("drivetrain.serve.telemetry.feedback.write", lambda *_: freed.wait(20))
    feedback = Feedback(tmp_path, Metrics(), close_seconds=0.1)
    late = [np.zeros(3, np.float32)]
    feedback.offer(Toy(Field("x", "float32")), "id", 0.0, late, late)
    feedback.close()
    assert f"{tmp_path} takes nothing: 3 rows are lost" in caplog.text
    freed.set()
    feedback._thread.join()
