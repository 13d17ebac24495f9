"""A canary that fails where the stable version does not gets no more requests."""

import time
from contextlib import closing
from types import SimpleNamespace

import pytest

from drivetrain.serve.execution.models import Artefact, Model, Release, Traffic
from drivetrain.serve.telemetry.metrics import Metrics
from drivetrain.serve.versions.guard import Guard

STABLE, CANARY = (SimpleNamespace(name="m", version=v) for v in ("1", "2"))


class Counted:
    """Counts answers, and asks the guard at a time."""

    def __init__(self):
        self.requests = Metrics().requests
        self.guard = Guard(self.requests)
        self.release = Release(STABLE, CANARY, 0.5)

    def answer(self, model, good=0, bad=0, refused=0):
        for code, count in (("200", good), ("500", bad), ("400", refused)):
            self.requests.of("m", model.version, "rows", code).value += count

    def failing(self, now):
        return self.guard.failing(self.release, now)


@pytest.fixture
def counted():
    found = Counted()
    assert found.failing(0.0) is None
    return found


def test_a_canary_that_fails_more_than_the_stable_version_is_told(counted):
    counted.answer(STABLE, good=950, bad=0)
    counted.answer(CANARY, good=46, bad=4)
    why = counted.failing(1.0)
    assert why == (
        "8.0% of its last 50 answers were server errors, 0.0% of the stable version's 950"
    )


@pytest.mark.parametrize(
    ("stable", "canary"),
    [
        ({"good": 950}, {"good": 45, "bad": 4}),  # too few to judge
        ({"good": 950}, {"good": 96, "bad": 4}),  # within the bound
        ({"good": 90, "bad": 10}, {"good": 86, "bad": 14}),  # both fail: it is not the canary
        ({"good": 950}, {"good": 10, "refused": 90}),  # the clients' mistakes
    ],
)
def test_a_canary_is_left_alone(counted, stable, canary):
    counted.answer(STABLE, **stable)
    counted.answer(CANARY, **canary)
    assert counted.failing(1.0) is None


def test_what_was_before_it_was_a_canary_and_what_is_long_ago_do_not_count():
    counted = Counted()
    counted.answer(CANARY, bad=100)
    assert counted.failing(0.0) is None
    counted.answer(CANARY, good=60, bad=2)
    for second in range(1, 40):
        counted.answer(CANARY, good=1)
        assert counted.failing(float(second)) is None
    counted.answer(CANARY, good=40, bad=3)  # 3 of 72 in half a minute, 5 of 142 since it began
    assert counted.failing(40.0) is None
    counted.answer(CANARY, bad=1)
    assert "5.5% of its last 73 answers" in (counted.failing(40.5) or "")


def test_a_canary_that_is_seldom_asked_is_judged_all_the_same(counted):
    """One answer every three seconds: half a minute never holds enough to judge by."""
    reasons = []
    for second in range(1, 1000):
        if second % 3 == 0:
            counted.answer(CANARY, bad=1)
        counted.answer(STABLE, good=1)
        reasons.append(counted.failing(float(second)))
    first = next(n for n, why in enumerate(reasons, 1) if why is not None)
    assert first == 150
    assert "100.0% of its last 50 answers were server errors, 0.0% of the" in (reasons[-1] or "")
    assert len(counted.guard._seen["m"][1]) < 60


def test_a_canary_that_is_not_asked_costs_no_memory(counted):
    for second in range(1, 10_000):
        counted.answer(STABLE, good=1)
        assert counted.failing(float(second)) is None
    assert len(counted.guard._seen["m"][1]) <= 3


def test_a_canary_that_answers_everything_is_held_against_no_failure(counted):
    counted.answer(CANARY, good=45, bad=5)
    assert counted.failing(1.0) is not None


def test_without_a_canary_there_is_nothing_to_judge(counted):
    counted.release = Release(STABLE)
    counted.answer(STABLE, bad=100)
    assert counted.failing(1.0) is None


def test_a_failing_canary_is_stopped_and_told_and_the_stable_version_answers_all(
    serve, write_bundle, tmp_path, monkeypatch, caplog
):
    stable, canary = (write_bundle(tmp_path / str(weight), weight) for weight in (0.75, 0.5))
    fails = False
    infer = Model.infer

    def failing(self, feeds):
        if fails and self.digest == canary.digest:
            raise RuntimeError("broken")
        return infer(self, feeds)

    monkeypatch.setattr(Model, "infer", failing)
    first, second = (Artefact(bundle.digest, bundle.path) for bundle in (stable, canary))
    told = Traffic(stable=first, canary=second, share=0.5)
    client = serve({"tiny": lambda: told}, reload_seconds=0.05)
    fails = True
    with closing(client.connection()) as connection:

        def statuses():
            row = {"carrier": "AA", "distance": 1.0, "hour": 3}
            return [client.post("/predict/tiny", row, over=connection).status for _ in range(100)]

        assert statuses().count(500) >= 1
        deadline = time.monotonic() + 10
        while statuses().count(500) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert statuses() == [200] * 100
    version = canary.digest[:12]
    stopped = f'drivetrain_canaries_stopped_total{{model="tiny",version="{version}"}}'
    assert client.metric(stopped) == 1
    assert f"the canary {version} was stopped: " in caplog.text
    share = f'drivetrain_traffic_share{{model="tiny",version="{stable.digest[:12]}",role="stable"}}'
    assert client.metric(share) == 1
    time.sleep(0.2)  # the alias is asked again, and still names it
    assert caplog.text.count("was stopped") == 1
