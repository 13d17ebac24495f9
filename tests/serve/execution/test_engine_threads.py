"""Runs on threads: which go there, when one hangs, and when two share what waits."""

import asyncio
import threading
import time

import pytest
from doubling import Doubling, Noted, drive

from drivetrain.serve.execution.engine import Batching, Engine
from drivetrain.serve.execution.models import Cost
from drivetrain.serve.telemetry.metrics import Metrics


@pytest.mark.parametrize("steady", [True, False])
def test_only_a_run_whose_time_is_known_holds_the_loop(steady):
    model = Doubling()
    model.cost.steady = steady
    drive(model, [Noted(model, [1])], inline_seconds=1.0)
    assert {name.startswith("drivetrain-run") for name in model.threads} == {not steady}


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


def test_what_waited_for_a_run_shares_the_next_with_who_was_answered_and_asks_again():
    """Or two groups of clients would wait for one another's runs from then on."""
    gate, fates = threading.Event(), []
    model = Doubling(seconds=1.0, gate=gate)

    class Asking(Noted):
        """Asks again when it is answered, as soon as the loop looks at its sockets."""

        __slots__ = ()

        def done(self, inputs, outputs):
            super().done(inputs, outputs)
            fates.append(self.fate)
            if len(fates) == 1:
                asyncio.get_running_loop().call_soon(engines[0].submit, Asking(model, [3.0]))

    engines = []

    async def main():
        engines.append(Engine(Batching(), Metrics(), asyncio.get_running_loop()))
        engines[0].open(model)
        engines[0].submit(Asking(model, [1.0]))
        while not model.runs:
            await asyncio.sleep(0.001)
        engines[0].submit(Asking(model, [2.0]))
        gate.set()
        while len(fates) < 3:
            await asyncio.sleep(0.001)
        engines[0].shut_down()

    asyncio.run(asyncio.wait_for(main(), 60))
    assert model.runs == [[1.0], [2.0, 3.0]]
    assert fates == [[2.0], [4.0], [6.0]]


@pytest.mark.parametrize(
    ("seconds", "begun"), [pytest.param(1.0, 2, id="long"), pytest.param(4e-4, 1, id="short")]
)
def test_what_comes_during_a_run_begins_beside_it_where_it_takes_long(seconds, begun):
    """Two threads that come and go soon would take turns with the loop on its core."""
    gate = threading.Event()
    model = Doubling(gate=gate)
    model.cost = Cost(seconds, 8 * seconds, 8)
    tasks = [Noted(model, [1.0]), Noted(model, [2.0])]

    async def main():
        engine = Engine(Batching(runs=2), Metrics(), asyncio.get_running_loop())
        engine.open(model)
        for number, task in enumerate(tasks):
            engine.submit(task)
            while len(model.runs) < min(number + 1, begun):
                await asyncio.sleep(0.001)
        for _ in range(5):  # turns of the loop, in which no other begins
            await asyncio.sleep(0)
        found = len(model.runs)
        gate.set()
        while any(task.fate is None for task in tasks):
            await asyncio.sleep(0.001)
        engine.shut_down()
        return found

    assert asyncio.run(asyncio.wait_for(main(), 60)) == begun
    assert [task.fate for task in tasks] == [[2.0], [4.0]]


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


def test_a_batch_is_divided_where_its_halves_are_there_clearly_sooner():
    """A run that has to read all items whatever it is asked takes most of its time for few rows
    too: eight of these are not worth two threads, but many are, and two that are cheap alone."""
    cost = Cost(2.0, 4.6, 8, half=3.6)
    assert [rows for rows in (1, 2, 4, 8, 16, 32, 256) if cost.divides(rows)] == [2, 16, 32, 256]
    assert cost.splits
    whole = Cost(1.0, 1.2, 8)
    assert not whole.splits
    assert not any(whole.divides(rows) for rows in (1, 2, 4, 8, 16))
