"""The watch over a made server and made feedback."""

import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drivetrain.watch.drift import drift, prediction_statistics
from drivetrain.watch.endpoint import Endpoint
from drivetrain.watch.exposition import parse
from drivetrain.watch.feedback import ROWS, SETTLED, Feedback, feedback_schema
from drivetrain.watch.live import Watch


def metrics(digest: str, requests: int) -> str:
    return (
        "drivetrain_ready 1\n"
        f'drivetrain_model_info{{model="flights",version="3",digest="{digest}"}} 1\n'
        f'drivetrain_requests_total{{model="flights",code="200"}} {requests}\n'
        f'drivetrain_request_seconds_bucket{{model="flights",le="0.002"}} {requests}\n'
        f'drivetrain_request_seconds_bucket{{model="flights",le="+Inf"}} {requests}\n'
    )


def write_feedback(path, bundle, batch, at=None) -> None:
    """A file as the server writes it: the record, the raw columns, the predictions."""
    count = len(batch)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "request_id": pa.array([f"r{i}" for i in range(count)]),
            "at": pa.array(np.arange(count), pa.timestamp("us")),
            "model": pa.array(["flights"] * count),
            "version": pa.array(["3"] * count),
            "latency_us": pa.array(np.full(count, 1500)),
            "x": pa.array(batch["x"]),
            "carrier": pa.array([value or None for value in batch["carrier"]]),
            "prediction.late": pa.array(bundle.predict(batch)["late"]),
        }
    )
    pq.write_table(table, path)
    if at is not None:
        os.utime(path, (at, at))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_look_tells_of_server_and_drift(bundle, rows, tmp_path):
    write_feedback(tmp_path / "f" / "part-1.parquet", bundle, rows(2_000, seed=1, shift=2.0))
    clock = Clock()
    with Endpoint(0) as server:
        url = server.url.removesuffix("/metrics")
        watch = Watch(url, bundle, tmp_path / "f", model="flights", clock=clock)
        server.offer(metrics(bundle.digest, 100))
        first = watch.look()
        clock.now += 2
        server.offer(metrics(bundle.digest, 150))
        second = watch.look()
    assert first.problems == ()
    assert first.service.requests_per_s is None
    assert second.service.requests_per_s == 25
    assert second.service.p50_ms == pytest.approx(1.0)
    assert second.drift_rows == 2_000
    assert second.drifted == ("x",)
    whole = drift(bundle.fitted, [rows(2_000, seed=1, shift=2.0)])
    assert second.drift["x"] == whole["x"]
    assert second.drift["carrier"].psi < 0.05
    assert json.loads(json.dumps(second.to_json()))["drift"]["x"]["rows"] == 2_000


def test_rates_are_those_of_the_last_ten_seconds(bundle):
    clock = Clock()
    with Endpoint(0) as server:
        watch = Watch(
            server.url.removesuffix("/metrics"), bundle, None, model="flights", clock=clock
        )
        for requests in (0, 1_000, *range(1_010, 1_310, 10)):
            server.offer(metrics(bundle.digest, requests))
            seen = watch.look().service
            clock.now += 1
    assert seen.seconds == 10
    assert seen.requests_per_s == 10


def test_a_server_that_is_gone_is_a_problem_and_not_an_error(bundle):
    with Endpoint(0) as server:
        url = server.url.removesuffix("/metrics")
    found = Watch(url, bundle, None, model="flights").look()
    assert found.service is None
    (problem,) = found.problems
    assert problem.startswith("no metrics: http://127.0.0.1")


def test_another_bundle_than_the_one_compared_with_is_told(bundle):
    with Endpoint(0) as server:
        server.offer(metrics("0" * 64, 1))
        found = Watch(server.url.removesuffix("/metrics"), bundle, None, model="flights").look()
    (problem,) = found.problems
    assert problem.startswith("the server has bundle 000000000000, drift is measured against")


def test_a_model_that_the_server_does_not_have_is_told(bundle):
    with Endpoint(0) as server:
        server.offer(metrics(bundle.digest, 1))
        found = Watch(server.url.removesuffix("/metrics"), bundle, None, model="fligths").look()
    assert "has no model 'fligths'" in found.problems[0]


def test_predictions_drift_too_where_the_bundle_has_their_statistics(
    new_bundle, bundle, rows, tmp_path
):
    known = prediction_statistics(bundle, [rows(5_000)])
    watched = new_bundle(fitted={**bundle.fitted, **known})
    write_feedback(tmp_path / "f" / "a.parquet", bundle, rows(2_000, seed=1, shift=2.0))
    found = Watch(None, watched, tmp_path / "f").look()
    assert set(found.drifted) == {"x", "prediction.late"}


def test_declared_bounds_decide_and_ignored_columns_do_not_count(
    new_bundle, bundle, rows, tmp_path
):
    strict = new_bundle(bounds={"test/drift/psi/carrier": (None, 0.2)})
    write_feedback(tmp_path / "f" / "a.parquet", bundle, rows(2_000, seed=1, shift=2.0))
    found = Watch(None, strict, tmp_path / "f").look()
    assert found.drift["x"].psi > 1
    assert found.drifted == ()
    assert found.drift_bound == {"x": None, "carrier": 0.2}


def test_drift_is_offered_as_prometheus_reads_it(bundle, rows, tmp_path):
    write_feedback(tmp_path / "f" / "a.parquet", bundle, rows(500))
    watch = Watch(None, bundle, tmp_path / "f", model="flights")
    snapshot = watch.look()
    found = {(s.name, s.labels.get("column")): s for s in parse(watch.gauges(snapshot))}
    assert found["drivetrain_drift_psi", "x"].value == snapshot.drift["x"].psi
    assert found["drivetrain_drift_missing", "carrier"].value == 0
    assert found["drivetrain_drift_rows", None].value == 500
    assert all(sample.labels["model"] == "flights" for sample in found.values())


# -- feedback --------------------------------------------------------------------------------------


def reader(bundle, directory, window=10**9) -> Feedback:
    return Feedback(directory, feedback_schema(bundle.manifest), window)


def test_each_file_is_read_once_and_in_order(bundle, rows, tmp_path):
    feedback = reader(bundle, tmp_path)
    write_feedback(tmp_path / "b.parquet", bundle, rows(10, seed=1), at=1_000)
    write_feedback(tmp_path / "a.parquet", bundle, rows(20, seed=2), at=2_000)
    assert [len(batch) for batch in feedback.new()] == [10, 20]
    assert list(feedback.new()) == []
    write_feedback(tmp_path / "c" / "d.parquet", bundle, rows(5, seed=3))
    (batch,) = feedback.new()
    assert batch["x"].tolist() == rows(5, seed=3)["x"].tolist()


def test_a_file_is_never_wholly_in_memory(bundle, rows, tmp_path):
    write_feedback(tmp_path / "a.parquet", bundle, rows(3 * ROWS + 1))
    assert max(len(batch) for batch in reader(bundle, tmp_path).new()) <= ROWS


def test_only_the_newest_files_that_fill_the_window_are_read(bundle, rows, tmp_path):
    for number in range(5):
        write_feedback(tmp_path / f"{number}.parquet", bundle, rows(100, seed=number), at=number)
    feedback = reader(bundle, tmp_path, window=150)
    found = list(feedback.new())
    assert [batch["x"][0] for batch in found] == [rows(100, seed=n)["x"][0] for n in (3, 4)]
    assert feedback.skipped == 300
    assert list(feedback.new()) == []


def test_a_file_that_is_being_written_is_left_for_the_next_time(bundle, rows, tmp_path):
    feedback = reader(bundle, tmp_path)
    write_feedback(tmp_path / "whole.parquet", bundle, rows(50))
    whole = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "whole.parquet").rename(tmp_path / ".hidden.parquet")
    (tmp_path / "torn.parquet").write_bytes(whole[: len(whole) // 2])
    assert list(feedback.new()) == []
    assert feedback.problems == []
    (tmp_path / "torn.parquet").write_bytes(whole)
    assert [len(batch) for batch in feedback.new()] == [50]


def test_a_file_that_stays_torn_is_a_problem_once(bundle, tmp_path):
    feedback = reader(bundle, tmp_path)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    old = time.time() - SETTLED - 1
    os.utime(tmp_path / "torn.parquet", (old, old))
    assert list(feedback.new()) == []
    assert "torn.parquet" in feedback.problems[0]
    assert list(feedback.new()) == []
    assert feedback.problems == []


def test_a_column_of_another_type_is_a_problem_and_not_an_error(bundle, tmp_path):
    pq.write_table(pa.table({"x": ["text"], "carrier": ["AA"]}), tmp_path / "a.parquet")
    found = Watch(None, bundle, tmp_path).look()
    assert "column 'x': found 'string'" in found.problems[0]
    assert found.drift_rows == 0


def test_a_file_of_something_else_is_a_problem_and_not_an_error(bundle, tmp_path):
    pq.write_table(pa.table({"y": [1]}), tmp_path / "a.parquet")
    assert "none of the columns" in Watch(None, bundle, tmp_path).look().problems[0]


def test_feedback_that_is_not_there_yet_is_no_problem(bundle, tmp_path):
    assert Watch(None, bundle, tmp_path / "later").look().problems == ()


# -- what is shown ---------------------------------------------------------------------------------


def test_one_look_is_one_plain_line(bundle, rows, tmp_path):
    write_feedback(tmp_path / "f" / "a.parquet", bundle, rows(2_000, shift=2.0))
    stream = io.StringIO()
    with Endpoint(0) as server:
        server.offer(metrics(bundle.digest, 100))
        watch = Watch(server.url.removesuffix("/metrics"), bundle, tmp_path / "f", model="flights")
        assert watch.run(once=True, stream=stream) == 0
    (shown,) = stream.getvalue().splitlines()
    for part in ("flights; ready yes; version 3; requests 100", "p50 1.00 ms", "ABOVE BOUND: x"):
        assert part in shown


def test_one_look_as_json(bundle, rows, tmp_path):
    write_feedback(tmp_path / "f" / "a.parquet", bundle, rows(2_000, shift=2.0))
    stream = io.StringIO()
    assert Watch(None, bundle, tmp_path / "f").run(once=True, json=True, stream=stream) == 0
    found = json.loads(stream.getvalue())
    assert found["drifted"] == ["x"]
    assert found["service"] is None


def test_a_mean_that_is_not_a_number_is_null_in_json(bundle):
    histogram = 'drivetrain_prediction_{}{{model="flights",output="late"}} {}\n'
    stream = io.StringIO()
    with Endpoint(0) as server:
        text = metrics(bundle.digest, 1) + histogram.format("sum", "NaN")
        server.offer(text + histogram.format("count", 3))
        watch = Watch(server.url.removesuffix("/metrics"), bundle, None, model="flights")
        assert watch.run(once=True, json=True, stream=stream) == 0
    assert json.loads(stream.getvalue())["service"]["predictions"] == {"late": None}


def test_one_look_at_nothing_fails(bundle):
    with Endpoint(0) as server:
        url = server.url.removesuffix("/metrics")
    stream = io.StringIO()
    assert Watch(url, bundle, None).run(once=True, stream=stream) == 1
    assert "PROBLEM: no metrics" in stream.getvalue()


def test_an_interrupt_ends_the_watch_well(bundle, monkeypatch):
    looks: list = []

    def stop(self):
        looks.append(1)
        if len(looks) == 3:
            raise KeyboardInterrupt
        return look(self)

    look = Watch.look
    monkeypatch.setattr(Watch, "look", stop)
    stream = io.StringIO()
    assert Watch(None, bundle, None).run(every=0.0, json=True, stream=stream) == 0
    assert len(stream.getvalue().splitlines()) == 2


def test_the_view_shows_figures_drift_and_problems(new_bundle, bundle, rows, tmp_path):
    from rich.console import Console

    from drivetrain.watch.view import draw, view

    slow = new_bundle(bounds={"latency/p99_ms": (None, 1.0)})
    write_feedback(tmp_path / "f" / "a.parquet", bundle, rows(2_000, shift=2.0))
    with Endpoint(0) as server:
        server.offer(metrics("0" * 64, 100))
        watch = Watch(server.url.removesuffix("/metrics"), slow, tmp_path / "f", model="flights")
        snapshot = watch.look()
    stream = io.StringIO()
    Console(file=stream, width=120).print(view(snapshot))
    shown = stream.getvalue()
    for part in ("flights", "since the server started", "p99 1.98 ms", "PSI", "0.25", "carrier"):
        assert part in shown
    assert "the server has bundle 000000000000" in shown
    drawn = io.StringIO()
    with draw(drawn) as show:
        show(snapshot)
    assert "PSI" in drawn.getvalue()


def test_days_are_read_from_the_newest_and_old_ones_are_not_listed_again(
    bundle, rows, tmp_path, monkeypatch
):
    def lay(day, name, seed, count=100):
        directory = tmp_path / "a" / f"date=2026-11-{day:02}"
        directory.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows(count, seed).to_arrow(), directory / name)

    listed: list[str] = []
    scandir = os.scandir

    def listing(path):
        listed.append(Path(path).name)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listing)
    for day in (1, 2, 3, 4):
        lay(day, "one.parquet", seed=day)
    feedback = reader(bundle, tmp_path / "a", window=150)
    found = [batch["x"][0] for batch in feedback.new()]
    assert found == [rows(100, 3)["x"][0], rows(100, 4)["x"][0]]
    assert listed == ["a", "date=2026-11-04", "date=2026-11-03"]
    listed.clear()
    assert list(feedback.new()) == []
    assert listed == ["a", "date=2026-11-04", "date=2026-11-03"]
    lay(4, "two.parquet", seed=5)
    lay(5, "one.parquet", seed=6)
    assert [b["x"][0] for b in feedback.new()] == [rows(100, 5)["x"][0], rows(100, 6)["x"][0]]
    listed.clear()
    assert list(feedback.new()) == []
    assert listed == ["a", "date=2026-11-05", "date=2026-11-04"]


def test_rows_of_old_days_never_come_after_those_that_filled_the_window(bundle, rows, tmp_path):
    for day in (1, 2):
        directory = tmp_path / f"date=2026-11-0{day}"
        directory.mkdir()
        pq.write_table(rows(100, day).to_arrow(), directory / "one.parquet")
    feedback = reader(bundle, tmp_path, window=50)
    assert [batch["x"][0] for batch in feedback.new()] == [rows(100, 2)["x"][0]]
    assert list(feedback.new()) == []


def test_what_a_shadow_said_is_passed_over(bundle, rows, tmp_path):
    directory = tmp_path / "_shadow" / "a" / "date=2026-11-01"
    directory.mkdir(parents=True)
    pq.write_table(rows(100).to_arrow(), directory / "one.parquet")
    assert list(reader(bundle, tmp_path, window=50).new()) == []
