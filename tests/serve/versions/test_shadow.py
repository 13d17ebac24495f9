"""A shadow hears what others answered, never the other way round, and takes only what is left."""

import asyncio
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from drivetrain.core.schema import Field, Schema
from drivetrain.serve.execution.engine import Batching
from drivetrain.serve.telemetry.metrics import Metrics
from drivetrain.serve.versions.shadow import Shadow, difference, places
from drivetrain.serve.versions.spare import Spare

X, NAME = Field("x", "float32"), Field("name", "string")
LATE = Field("late", "float32")


DEMAND = [0.0]
"""Of the busiest thread, as these tests have it: the machine's own load is none of theirs."""


@pytest.fixture(autouse=True)
def leisure(monkeypatch):
    DEMAND[0] = 0.0
    monkeypatch.setattr(
        "drivetrain.serve.versions.shadow.Spare", lambda: SimpleNamespace(busiest=lambda: DEMAND[0])
    )


class Toy:
    """A version whose ``late`` is ``x + add``; a negative ``x`` fails it."""

    name = "toy"

    def __init__(self, version, add=0.0, inputs=(X,), outputs=(LATE,), gate=None):
        self.version, self.add, self.gate = version, add, gate
        self.inputs = self.whole = Schema(tuple(inputs))
        self.filling = self.lookup = self.live = None
        manifest = SimpleNamespace(outputs=Schema(tuple(outputs)))
        self.bundle = SimpleNamespace(manifest=manifest)
        self.columns = SimpleNamespace(stackable=True)
        self.cost = SimpleNamespace(pays=True)
        self.runs = []

    def run(self, requests, live):
        if self.gate is not None:
            self.gate.wait()
        place = self.inputs.names.index("x")
        xs = np.concatenate([request[place] for request in requests])
        self.runs.append(len(xs))
        if (xs < 0).any():
            raise RuntimeError("negative")
        return [xs], [xs + np.float32(self.add)]


class Service:
    """What a shadow needs of one."""

    def __init__(self):
        self.metrics, self.events = Metrics(), []
        self.engine = SimpleNamespace(waiting=0, batching=Batching(rows=8))
        self.recorder = SimpleNamespace(offer=lambda *event: self.events.append(event))

    def outcomes(self):
        found = self.metrics.shadow_requests
        return {
            outcome: int(found.of("toy", "2", outcome).value)
            for outcome in ("answered", "failed", "dropped")
        }


@contextmanager
def asked(service, shadow_model, stable=None):
    """``ask(x, …)`` answers a request by the stable version; the shadow hears of it."""
    stable = stable or Toy("1")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    shadow = Shadow(shadow_model, service, loop)
    mirror = shadow.beside(stable)

    def ask(*xs, request="r"):
        values = np.array(xs, np.float32)
        columns = [values if column == X else np.array(["n"] * len(xs), object)
                   for column in stable.inputs]  # fmt: skip
        loop.call_soon_threadsafe(mirror.offer, request, columns, [values])

    ask.shadow = shadow
    try:
        yield ask
    finally:
        shadow.close()
        shadow._thread.join(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_what_was_answered_is_asked_and_compared_and_recorded_as_a_shadow():
    service = Service()
    with asked(service, Toy("2", add=0.25)) as ask:
        ask(0.5, 0.125, request="one")
        wait_until(lambda: service.outcomes() == {"answered": 1, "failed": 0, "dropped": 0})
    histogram = service.metrics.shadow_difference.of("toy", "2", "1", "late")
    assert (sum(histogram.counts), histogram.sum) == (2, 0.5)
    said = service.metrics.prediction.of("toy", "2", "late")
    assert (sum(said.counts), said.sum) == (2, 0.75 + 0.375)
    assert sum(service.metrics.inference_seconds.of("toy", "2").counts) == 1
    assert service.metrics.batch_rows.of("toy", "2").sum == 2
    ((model, request, _, inputs, outputs, role),) = service.events
    assert (model.version, request, role) == ("2", "one", "shadow")
    assert inputs[0].tolist() == [0.5, 0.125]
    assert outputs[0].tolist() == [0.75, 0.375]


def test_a_request_that_fails_the_shadow_fails_alone():
    service, gate = Service(), threading.Event()
    model = Toy("2", gate=gate)
    with asked(service, model) as ask:
        for x in (1, 2, -3, 4):
            ask(x)
        gate.set()
        wait_until(lambda: service.outcomes() == {"answered": 3, "failed": 1, "dropped": 0})
    histogram = service.metrics.shadow_difference.of("toy", "2", "1", "late")
    assert (sum(histogram.counts), histogram.sum) == (3, 0.0)


def test_what_waits_runs_together_up_to_the_rows_of_a_run():
    service, gate = Service(), threading.Event()
    model = Toy("2", gate=gate)
    with asked(service, model) as ask:
        for _ in range(21):
            ask(1.0)
        time.sleep(0.05)
        gate.set()
        wait_until(lambda: service.outcomes()["answered"] == 21)
    assert max(model.runs) == 8
    assert len(model.runs) <= 5


def test_beyond_its_queue_it_drops_and_counts_and_at_its_end_drops_the_rest():
    service, gate = Service(), threading.Event()
    with asked(service, Toy("2", gate=gate)) as ask:
        for _ in range(10):
            ask(*[1.0] * 1024)  # four fill the queue, or five, when one runs already
        wait_until(lambda: service.outcomes()["dropped"] in (5, 6))
        gate.set()
    assert sum(service.outcomes().values()) == 10
    assert service.outcomes()["failed"] == 0


def test_while_rows_wait_for_an_answer_it_neither_begins_nor_hears_of_more():
    service, began, gate = Service(), threading.Event(), threading.Event()
    model = Toy("2", gate=SimpleNamespace(wait=lambda: (began.set(), gate.wait())))
    with asked(service, model) as ask:
        ask(1.0)
        wait_until(began.is_set)
        ask(2.0)
        wait_until(lambda: ask.shadow._rows == 2)
        service.engine.waiting = 1
        ask(3.0)
        wait_until(lambda: service.outcomes()["dropped"] == 1)
        gate.set()
        wait_until(lambda: service.outcomes()["answered"] == 1)
        ask(4.0)
        wait_until(lambda: service.outcomes()["dropped"] == 2)
        assert model.runs == [1]
        service.engine.waiting = 0
        wait_until(lambda: service.outcomes()["answered"] == 2)


def test_while_another_thread_is_at_its_limit_it_neither_begins_nor_hears_of_more():
    DEMAND[0] = 1.0
    service, model = Service(), Toy("2")
    with asked(service, model) as ask:
        wait_until(lambda: not ask.shadow.spare)
        for _ in range(5):
            ask(1.0)
        wait_until(lambda: service.outcomes()["dropped"] == 5)
        assert model.runs == []
        DEMAND[0] = 0.1
        wait_until(lambda: ask.shadow.spare)
        ask(1.0)
        wait_until(lambda: service.outcomes()["answered"] == 1)


def test_a_thread_that_computes_or_waits_for_a_core_has_a_demand_and_others_have_none():
    spare, enough = Spare(), threading.Event()

    def compute():
        while not enough.is_set():
            pass

    threads = [threading.Thread(target=compute), threading.Thread(target=enough.wait)]
    for thread in threads:
        thread.start()
    wait_until(lambda: spare.busiest() > 0.5)
    enough.set()
    for thread in threads:
        thread.join()
    wait_until(lambda: spare.busiest() < 0.5)


def test_columns_that_it_does_not_know_are_left_out():
    service, model = Service(), Toy("2", inputs=(X,))
    with asked(service, model, stable=Toy("1", inputs=(NAME, X))) as ask:
        ask(1.0)
        wait_until(lambda: service.outcomes()["answered"] == 1)


def test_a_column_that_requests_do_not_bring_is_named():
    with pytest.raises(ValueError, match="column 'name' of the shadow: found 'no such column'"):
        places(Schema((X, NAME)), Schema((X,)))
    with pytest.raises(ValueError, match=r"column 'x' of the shadow: found 'float32\[\]'"):
        places(Schema((X,)), Schema((Field("x", "int64"),)))
    assert places(Schema((NAME, X)), Schema((X, LATE, NAME))) == (2, 0)


def test_outputs_that_only_one_of_them_gives_are_not_compared():
    service = Service()
    with asked(service, Toy("2", outputs=(Field("late", "float64"),))) as ask:
        ask(1.0)
        wait_until(lambda: service.outcomes()["answered"] == 1)
    assert service.metrics.shadow_difference.numbers() == {}


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=5))
def test_the_difference_of_floats_is_0_exactly_where_they_are_the_same(pairs):
    one, other = (np.array(side, np.float32) for side in zip(*pairs, strict=True))
    found = difference(one, other)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    assert found.shape == (len(pairs),)
    assert ((found == 0) == same).all()
    assert not np.isnan(found).any()
    assert (found == difference(other, one)).all()


def test_the_difference_of_anything_else_is_0_or_1_a_row():
    assert difference(np.array([1, 2]), np.array([1, 3])).tolist() == [0, 1]
    texts = [np.array(t, object) for t in (["a", "b"], ["a", "c"])]
    assert difference(*texts).tolist() == [0, 1]
    wide = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert difference(wide, np.array([[1.0, 2.5], [3.0, 4.0]])).tolist() == [0.5, 0]
    assert difference(wide, wide[:, :1]).tolist() == [1, 1]


def test_a_slow_shadow_rests_four_times_as_long_as_it_ran():
    begun = []

    def slow():
        begun.append(time.perf_counter())
        time.sleep(0.4)

    service, model = Service(), Toy("2", gate=SimpleNamespace(wait=slow))
    model.columns.stackable = False
    with asked(service, model) as ask:
        ask(1.0)
        ask(2.0)
        wait_until(lambda: len(begun) == 2)
    assert begun[1] - begun[0] >= 5 * 0.4
