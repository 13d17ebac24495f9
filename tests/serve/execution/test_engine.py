"""Batches: who shares a run, who fails, who is sent away, and that no answer is another's."""

import asyncio
import json
import math
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from drivetrain.core.schema import Field, Schema
from drivetrain.serve.execution.engine import Batching, Engine, ExpiredError, OverloadedError, Task
from drivetrain.serve.execution.live import Moment
from drivetrain.serve.execution.models import Cost
from drivetrain.serve.telemetry.metrics import Metrics

HOST = b"Host: x\r\n"


def post(row, close=False):
    body = json.dumps(row).encode()
    end = b"Connection: close\r\n" if close else b""
    head = b"POST /predict/tiny HTTP/1.1\r\n%bContent-Length: %d\r\n%b\r\n"
    return head % (HOST, len(body), end) + body


def row(number):
    return {"carrier": ("AA", "UA", "DL", None)[number % 4], "distance": 1.5 * number,
            "hour": number % 24}  # fmt: skip


def answers(data):
    parts = data.split(b"HTTP/1.1 ")[1:]
    return [(int(part[:3]), json.loads(part.partition(b"\r\n\r\n")[2])) for part in parts]


class Doubling:
    """A stand-in for a model: doubles its one column, fails on 13, and remembers its runs."""

    def __init__(self, pays=True, seconds=1e-6, gate=None):
        self.name, self.version = "doubling", "one"
        self.columns = SimpleNamespace(
            stackable=True,
            arrays=lambda requests: [np.concatenate([request[0] for request in requests])],
            feeds=lambda arrays, unfit=None: {"once": arrays[0]},
        )
        self.cost = Cost(seconds, seconds * (1 if pays else 8), 8)
        self.bound = self.lookup = self.live = None
        outputs = Schema((Field("twice", "float32"),))
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(outputs=outputs))
        self.runs = []
        self.threads = set()
        self.gate = gate

    def run(self, requests, live):
        arrays = self.columns.arrays(requests)
        return arrays, self.infer({**self.columns.feeds(arrays), **live})

    def infer(self, feeds):
        self.threads.add(threading.current_thread().name)
        values = feeds["once"]
        self.runs.append(values.tolist())
        if self.gate is not None:
            assert self.gate.wait(5)
        if 13 in values:
            raise RuntimeError("thirteen")
        return [values * 2]


class Noted(Task):
    """A task that keeps what became of it."""

    __slots__ = ("fate",)

    def __init__(self, model, values, deadline=math.inf, size=0):
        super().__init__(model, [np.array(values, np.float32)], len(values), deadline, size=size)
        self.fate = None

    def done(self, inputs, outputs):
        assert self.fate is None
        self.fate = outputs[0].tolist()

    def failed(self, error):
        assert self.fate is None
        self.fate = error


def drive(model, tasks, **batching):
    """Submit tasks in one turn of a loop; wait until each has its fate."""

    async def main():
        engine = Engine(Batching(**batching), Metrics(), asyncio.get_running_loop())
        engine.open(model)
        for task in tasks:
            engine.submit(task)
        while any(task.fate is None for task in tasks):
            await asyncio.sleep(0.001)
        engine.shut_down()

    asyncio.run(asyncio.wait_for(main(), 10))


@pytest.mark.parametrize("inline", [1.0, 0.0])
def test_what_arrives_in_one_turn_is_one_run(inline):
    model = Doubling()
    tasks = [Noted(model, [n, n + 0.5]) for n in range(5)]
    drive(model, tasks, inline_seconds=inline)
    assert len(model.runs) == 1
    assert [task.fate for task in tasks] == [[2 * n, 2 * n + 1] for n in range(5)]


def test_a_run_takes_no_more_rows_than_it_may_but_always_one_request():
    model = Doubling()
    tasks = [Noted(model, [n] * size) for n, size in enumerate((3, 2, 9, 1))]
    drive(model, tasks, rows=5)
    assert [len(run) for run in model.runs] == [5, 9, 1]


def test_a_model_that_gains_nothing_by_batches_runs_one_request_at_a_time():
    model = Doubling(pays=False)
    tasks = [Noted(model, [n]) for n in range(4)]
    drive(model, tasks)
    assert model.runs == [[0], [1], [2], [3]]


@pytest.mark.parametrize("steady", [True, False])
def test_only_a_run_whose_time_is_known_holds_the_loop(steady):
    model = Doubling()
    model.cost.steady = steady
    drive(model, [Noted(model, [1])], inline_seconds=1.0)
    assert {name.startswith("drivetrain-run") for name in model.threads} == {not steady}


def test_what_arrives_during_a_run_is_the_next_run():
    gate = threading.Event()
    model = Doubling(gate=gate)

    async def main():
        engine = Engine(Batching(inline_seconds=0), Metrics(), asyncio.get_running_loop())
        engine.open(model)
        tasks = [Noted(model, [0])]
        engine.submit(tasks[0])
        while not model.runs:
            await asyncio.sleep(0.001)
        for n in range(1, 5):
            tasks.append(Noted(model, [n]))
            engine.submit(tasks[-1])
            await asyncio.sleep(0)
        assert engine.queued("doubling") == 4
        gate.set()
        while tasks[-1].fate is None:
            await asyncio.sleep(0.001)
        engine.shut_down()

    asyncio.run(asyncio.wait_for(main(), 10))
    assert model.runs == [[0], [1, 2, 3, 4]]


@pytest.mark.parametrize("inline", [1.0, 0.0])
def test_a_run_that_fails_is_repeated_for_each_request_and_only_the_offender_fails(inline):
    model = Doubling()
    tasks = [Noted(model, [n]) for n in (1, 13, 2)]
    drive(model, tasks, inline_seconds=inline)
    assert tasks[0].fate == [2]
    assert str(tasks[1].fate) == "thirteen"
    assert tasks[2].fate == [4]


def test_what_has_expired_or_lost_its_client_is_never_computed():
    model = Doubling()
    late = Noted(model, [1], deadline=time.monotonic() - 1)
    gone = Noted(model, [2])
    gone.cancel()
    good = Noted(model, [3])
    drive(model, [late, gone, good])
    assert isinstance(late.fate, ExpiredError)
    assert isinstance(gone.fate, ExpiredError)
    assert model.runs == [[3]]


def test_a_full_queue_turns_the_next_away():
    model = Doubling()

    async def main():
        engine = Engine(Batching(queue_rows=3), Metrics(), asyncio.get_running_loop())
        engine.open(model)
        engine.submit(Noted(model, [1, 2]))
        with pytest.raises(OverloadedError):
            engine.submit(Noted(model, [3, 4]))
        engine.submit(Noted(model, [5]))
        await asyncio.sleep(0.01)
        assert engine.queued("doubling") == 0

    asyncio.run(main())
    assert model.runs == [[1, 2, 5]]


def test_a_queue_that_was_full_sends_requests_away_unread_until_it_is_shorter():
    model = Doubling()

    async def main():
        engine = Engine(Batching(queue_rows=16, rows=1), Metrics(), asyncio.get_running_loop())
        engine.open(model)
        for _ in range(16):
            engine.submit(Noted(model, [1]))
        engine.admit(model)  # nobody was sent away yet
        with pytest.raises(OverloadedError):
            engine.submit(Noted(model, [2]))
        admitted = []
        while engine.waiting:
            try:
                engine.admit(model)
                admitted.append(engine.waiting)
            except OverloadedError:
                assert engine.waiting > 14
            await asyncio.sleep(0)
        assert max(admitted) == 14
        engine.admit(model)

    asyncio.run(asyncio.wait_for(main(), 10))


def test_who_is_full_is_told_once_and_again_when_there_is_room_for_some():
    model, told = Doubling(), []

    async def main():
        engine = Engine(Batching(queue_rows=16, rows=1), Metrics(), asyncio.get_running_loop())
        engine.open(model)
        engine.on_full = lambda model, why: told.append((why, engine.waiting))
        for _ in range(16):
            engine.submit(Noted(model, [1]))
        for _ in range(3):
            with pytest.raises(OverloadedError):
                engine.submit(Noted(model, [2]))
        while engine.waiting:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(main(), 10))
    assert told == [("the queue is full: 16 rows wait.", 16), ("", 14)]


@pytest.mark.parametrize(("pays", "few", "taken"), [(True, 1, 4), (False, 1, 2), (False, 5, 5)])
def test_no_more_waits_than_is_expected_to_be_run_in_time_unless_it_is_few(pays, few, taken):
    """By what was measured, here a second for each run and half of one for each row."""
    model = Doubling(pays)
    model.cost.fixed, model.cost.per_row = 1.0, 0.5

    async def main():
        limits = Batching(queue_seconds=2.5, queue_requests=few)
        engine = Engine(limits, Metrics(), asyncio.get_running_loop())
        engine.open(model)
        for _ in range(taken):  # four rows share a run of 3 s, two alone take 3 s
            engine.submit(Noted(model, [1]))
        with pytest.raises(OverloadedError, match=r"takes 2\.5 s"):
            engine.submit(Noted(model, [1]))

    asyncio.run(asyncio.wait_for(main(), 10))


def test_an_answer_that_cannot_be_written_takes_no_other_with_it():
    class Broken(Noted):
        __slots__ = ()

        def done(self, inputs, outputs):
            raise ValueError("no way to say it")

    model = Doubling()
    tasks = [Broken(model, [1]), Noted(model, [2])]
    drive(model, tasks)
    assert str(tasks[0].fate) == "no way to say it"
    assert tasks[1].fate == [4]


def test_cost_follows_what_it_sees_but_not_one_outlier():
    cost = Cost(1e-4, 1.7e-4, 8)
    assert cost.pays
    assert math.isclose(cost.seconds(8), 1.7e-4)
    cost.seen(1, 1.0)
    assert cost.seconds(1) < 1.25e-4
    for _ in range(200):
        cost.seen(1, 5e-4)
    assert math.isclose(cost.seconds(1), 5e-4, rel_tol=0.05)


# -- over HTTP -------------------------------------------------------------------------------------


@pytest.mark.parametrize("inline", [1.0, 0.0])
def test_concurrent_clients_get_their_own_answers_to_the_last_bit(serve, tiny, inline):
    client = serve(batching=Batching(inline_seconds=inline))
    expected = tiny.predict([row(n) for n in range(400)])["late"]

    def ask(start):
        connection = client.connection()
        wrong = []
        for n in range(start, 400, 12):
            reply = client.post("/predict/tiny", row(n), over=connection)
            if np.float32(reply.json["predictions"][0]["late"]) != expected[n]:
                wrong.append(n)
        connection.close()
        return wrong

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == [[]] * 12


def test_a_poisoned_request_fails_alone_beside_good_ones_of_the_same_batch(serve, tiny):
    client = serve()
    rows = [row(n) for n in range(20)]
    poison = {"carrier": "AA", "distance": 1.0, "hour": 99}
    data = b"".join(post(r) for r in rows[:10]) + post(poison)
    data += b"".join(post(r) for r in rows[10:]) + post(rows[0], close=True)
    found = answers(client.raw(data))
    expected = tiny.predict([*rows[:10], rows[0], *rows[10:], rows[0]])["late"]
    assert [status for status, _ in found] == [*[200] * 10, 400, *[200] * 11]
    assert "the graph refuses these values" in found[10][1]["error"]
    for (status, body), value in zip(found, expected, strict=True):
        assert status == 400 or np.float32(body["predictions"][0]["late"]) == value
    version = tiny.digest[:12]
    runs = f'drivetrain_batch_rows_count{{model="tiny",version="{version}"}}'
    assert client.metric(runs) < 5  # they did share runs


def test_a_full_queue_is_503_with_a_time_to_try_again(serve):
    client = serve(batching=Batching(queue_rows=4))
    data = client.raw(post(row(1)) * 9 + post(row(1), close=True))
    assert [status for status, _ in answers(data)] == [200] * 4 + [503] * 6
    assert data.count(b"Retry-After: 1\r\n") == 6
    assert answers(data)[4][1] == {"error": "the queue is full: 4 rows wait."}


def test_requests_hold_no_more_bytes_than_the_queue_may_however_few_their_rows():
    model = Doubling(gate=threading.Event())

    async def main():
        batching = Batching(inline_seconds=0.0, queue_bytes=100_000)
        engine = Engine(batching, Metrics(), asyncio.get_running_loop())
        engine.open(model)
        first, second, third = (
            Noted(model, [n], size=size) for n, size in enumerate((50_000, 1, 1))
        )
        engine.submit(first)  # more than the queue holds, and yet taken: it would never be else
        with pytest.raises(OverloadedError, match="200096 bytes"):
            engine.submit(second)
        model.gate.set()
        while first.fate is None:
            await asyncio.sleep(0.001)
        assert engine.held == 0
        engine.submit(third)
        assert 0 < engine.held < 200
        third.cancel()
        while third.fate is None:
            await asyncio.sleep(0.001)
        assert engine.held == 0
        engine.shut_down()

    asyncio.run(asyncio.wait_for(main(), 10))


@pytest.mark.parametrize(
    "values",
    [
        [0.5] * 999,
        list(range(2**40, 2**40 + 999)),
        [""] * 999,
        ["β" * 7] * 3 + [chr(0x3B1 + n) * 3 for n in range(900)],
        ["a" * 99 + "🦆" + str(n) for n in range(500)],
    ],
)
def test_what_columns_hold_is_never_more_than_what_is_counted(values):
    text = json.dumps(values, ensure_ascii=False)
    own = json.loads(text)
    held = sys.getsizeof(own) + sum(sys.getsizeof(value) + 8 for value in own)
    task = Task(Doubling(), [own], len(own), size=len(text.encode()))
    assert held <= task.holds


def test_what_a_version_did_is_told_in_parts_that_add_up():
    model, metrics = Doubling(), Metrics()

    async def main():
        engine = Engine(Batching(inline_seconds=0.0), metrics, asyncio.get_running_loop())
        engine.open(model)
        tasks = [Noted(model, [1, 2]), Noted(model, [13]), Noted(model, [3])]
        tasks += [Noted(model, [5], deadline=-math.inf)]
        for task in tasks:
            engine.submit(task)
        while any(task.fate is None for task in tasks):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        engine.shut_down()

    asyncio.run(asyncio.wait_for(main(), 10))
    found = metrics.statistics.of("doubling", "one").json("doubling", "one")
    parts = found["inference_stats"]
    assert {name: part["count"] for name, part in parts.items()} == {
        **dict.fromkeys(("success", "queue", "compute_input", "compute_infer"), 2),
        **dict.fromkeys(("fail", "compute_output"), 2),
        **dict.fromkeys(("cache_hit", "cache_miss"), 0),
    }
    assert (found["inference_count"], found["execution_count"]) == (3, 1)
    whole = sum(parts[name]["ns"] for name in parts if name not in ("success", "fail"))
    assert abs(whole - parts["success"]["ns"]) < 1000
    assert [batch["batch_size"] for batch in found["batch_stats"]] == [3]
    assert abs(found["last_inference"] / 1e3 - time.time()) < 60


def test_a_run_on_a_thread_that_takes_too_long_is_told_until_it_is_over():
    gate = threading.Event()
    model = Doubling(seconds=1.0, gate=gate)
    task = Noted(model, [1.0])

    async def main():
        engine = Engine(Batching(), Metrics(), asyncio.get_running_loop())
        engine.open(model)
        assert engine.stuck(0.0) == ""
        engine.submit(task)
        while not model.runs:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        engine.close(model)  # a version that is replaced meanwhile holds its thread all the same
        found = engine.stuck(0.01), engine.stuck(60.0)
        gate.set()
        while task.fate is None:
            await asyncio.sleep(0.005)
        engine.shut_down()
        return *found, engine.stuck(0.0)

    assert asyncio.run(main()) == ("doubling", "", "")


def test_what_waits_for_a_thread_does_not_hang():
    """A worker whose run hangs is killed: a queue of long runs must not look like one."""
    gates = [threading.Event(), threading.Event()]
    first, second = (Doubling(seconds=1.0, gate=gate) for gate in gates)
    second.name = "waits"
    tasks = [Noted(first, [1.0]), Noted(second, [1.0])]

    async def main():
        engine = Engine(Batching(threads=1), Metrics(), asyncio.get_running_loop())
        for task in tasks:
            engine.open(task.model)
            engine.submit(task)
        await asyncio.sleep(0.5)
        assert engine.stuck(0.4) == "doubling"
        gates[0].set()
        while tasks[0].fate is None or not second.runs:
            await asyncio.sleep(0.001)
        found = engine.stuck(0.4)
        gates[1].set()
        while tasks[1].fate is None:
            await asyncio.sleep(0.001)
        engine.shut_down()
        return found

    assert asyncio.run(main()) == ""


def test_requests_that_run_again_alone_are_not_one_long_run():
    """Or one bad request among many whose runs are long would cost the worker."""
    model = Doubling(seconds=1.0)
    infer, alone = model.infer, []

    def slow(feeds):
        if len(feeds["once"]) == 1:
            time.sleep(0.1)
            alone.append(engines[0].stuck(1.0))
        return infer(feeds)

    model.infer = slow
    tasks = [Noted(model, [float(n)]) for n in range(20)]
    engines = []

    async def main():
        engines.append(Engine(Batching(), Metrics(), asyncio.get_running_loop()))
        engines[0].open(model)
        for task in tasks:
            engines[0].submit(task)
        while any(task.fate is None for task in tasks):
            await asyncio.sleep(0.01)
        engines[0].shut_down()

    asyncio.run(main())
    assert len(alone) == 20
    assert set(alone) == {""}


class Holding:
    """Live tensors whose moments are counted."""

    def __init__(self, fails=False):
        self.fails, self.begun, self.ended, self.fed = fails, 0, 0, []

    def __call__(self, arrays):
        if self.fails:
            raise RuntimeError("nothing was learnt")
        self.begun += 1
        return Moment({"row": arrays[0] * 10}, {"whole": np.ones(3)}, self._release)

    def _release(self):
        self.ended += 1


def learnt(tasks, seconds=1e-6, live=None, gate=None):
    """The fates of tasks of a model with live tensors."""
    model = tasks[0].model
    model.cost, model.live, model.gate = Cost(seconds, seconds, 8), live, gate
    infer = model.infer

    def fed(feeds):
        model.live.fed.append({n: a.tolist() for n, a in feeds.items() if n != "once"})
        return infer(feeds)

    model.infer = fed

    async def main():
        engine = Engine(Batching(), Metrics(), asyncio.get_running_loop())
        engine.open(model)
        for task in tasks:
            engine.submit(task)
        while any(task.fate is None for task in tasks):
            await asyncio.sleep(0.001)
        engine.shut_down()

    asyncio.run(main())


@pytest.mark.parametrize("seconds", [1e-6, 1.0])
def test_a_run_is_fed_one_moment_and_holds_it_until_it_has_ended(seconds):
    model, live = Doubling(), Holding()
    tasks = [Noted(model, [float(n)]) for n in range(3)]
    learnt(tasks, seconds, live)
    assert live.fed == [{"row": [0.0, 10.0, 20.0], "whole": [1.0] * 3}]
    assert (live.begun, live.ended) == (1, 1)


@pytest.mark.parametrize("seconds", [1e-6, 1.0])
def test_runs_that_fail_let_go_of_their_moment_and_each_alone_is_fed_its_own_rows(seconds):
    model, live = Doubling(), Holding()
    tasks = [Noted(model, [1.0]), Noted(model, [13.0]), Noted(model, [3.0, 4.0])]
    learnt(tasks, seconds, live)
    assert [fed["row"] for fed in live.fed] == [
        [10.0, 130.0, 30.0, 40.0], [10.0], [130.0], [30.0, 40.0],
    ]  # fmt: skip
    assert isinstance(tasks[1].fate, RuntimeError)
    assert (live.begun, live.ended) == (1, 1)


def test_requests_that_nobody_waits_for_hold_no_moment_and_one_that_is_not_had_fails_them():
    model, live = Doubling(), Holding()
    late = Noted(model, [1.0], deadline=-math.inf)
    learnt([late], live=live)
    assert (live.begun, live.ended) == (0, 0)
    model, live = Doubling(), Holding(fails=True)
    task = Noted(model, [1.0])
    learnt([task], live=live)
    assert "nothing was learnt" in str(task.fate)


@pytest.mark.parametrize("runs", [1, 2])
def test_what_takes_long_for_each_row_runs_on_two_threads_where_it_may(runs):
    """In half of the time, if there are two cores; a barrier of two ends only if both run."""
    model, barrier = Doubling(seconds=1.0), threading.Barrier(runs)
    model.cost = Cost(1.0, 5.0, 8)  # more than half of it by row
    infer = model.infer

    def both(feeds):
        barrier.wait(60)
        return infer(feeds)

    model.infer = both
    tasks = [Noted(model, [float(n)]) for n in range(8)]
    drive(model, tasks, runs=runs)
    assert [task.fate for task in tasks] == [[2.0 * n] for n in range(8)]
    assert [len(run) for run in model.runs] == [8 // runs] * runs


@pytest.mark.parametrize(
    "cost",
    [
        pytest.param(Cost(1e-4, 5e-4, 8), id="little"),
        pytest.param(Cost(3.0, 5.0, 8), id="the same by however many rows"),
        # As of a product that packs its other side anew for each run of more than one row.
        pytest.param(Cost(1.0, 5.0, 8, half=4.0), id="more from two rows on"),
    ],
)
def test_what_takes_little_or_long_in_halves_too_is_not_divided(cost):
    model = Doubling(seconds=1e-4)
    model.cost = cost
    tasks = [Noted(model, [float(n)]) for n in range(8)]
    drive(model, tasks, runs=2)
    assert [len(run) for run in model.runs] == [8]
