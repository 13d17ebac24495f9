"""Batches: who shares a run, who fails, who is sent away, and that no answer is another's."""

import asyncio
import json
import math
import sys
import threading
import time

import pytest
from doubling import Doubling, Noted, drive

from drivetrain.serve.execution.engine import Batching, Engine, ExpiredError, OverloadedError, Task
from drivetrain.serve.execution.models import Cost
from drivetrain.serve.telemetry.metrics import Metrics


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


@pytest.mark.parametrize(
    ("seconds", "rows", "runs"),
    [(100.0, 256, [[0, 1, 2, 3]]), (100.0, 2, [[0, 1], [2, 3]]), (0.0, 256, [[0], [1], [2], [3]])],
)
def test_requests_wait_for_each_other_while_every_turn_brings_one(seconds, rows, runs):
    """But no longer than a run takes, and for no more than it may take."""
    model = Doubling(seconds=seconds)
    model.cost.pays = True

    async def main():
        batching = Batching(inline_seconds=math.inf, rows=rows)
        engine = Engine(batching, Metrics(), asyncio.get_running_loop())
        engine.open(model)
        tasks = [Noted(model, [n]) for n in range(4)]
        for task in tasks:
            engine.submit(task)
            await asyncio.sleep(0)
        while any(task.fate is None for task in tasks):
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), 10))
    assert model.runs == runs


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


@pytest.mark.parametrize("inline", [1.0, 0.0])
def test_nobody_gets_another_ones_answer_where_a_graph_leaves_rows_out(inline):
    model = Doubling()
    infer = model.infer
    model.infer = lambda feeds: [array[array != 14] for array in infer(feeds)]
    tasks = [Noted(model, [n]) for n in (6.0, 7.0, 8.0)]
    drive(model, tasks, inline_seconds=inline)
    assert [task.fate for task in tasks[::2]] == [[12], [16]]
    assert "found (0,), allowed: 1 rows" in str(tasks[1].fate)
