"""A stand-in for a model whose runs are remembered, and tasks that keep what became of them."""

import asyncio
import math
import threading
from types import SimpleNamespace

import numpy as np

from drivetrain.core.schema import Field, Schema
from drivetrain.serve.execution.engine import Batching, Engine, Task
from drivetrain.serve.execution.models import Cost
from drivetrain.serve.telemetry.metrics import Metrics


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
