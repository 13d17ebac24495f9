"""The training loop with telemetry, TensorBoard and MLflow beside the same loop without them.

    python bench/telemetry.py --quick --json

Both are the whole of ``Single.fit`` over the same made batches in memory, on one thread, in turn in
one process: a loop of thousands of small updates a second, which feels a cost as no other does.
Without means that nobody hears the metrics and that waits, rates and memory are not looked at. With
means that they are, and that TensorBoard and an MLflow store in SQLite write all of it.

``telemetry_overhead`` is all CPU seconds of a heard training over those that are not telemetry's,
counted where they are spent: on the listeners' threads until all is written, and in the calls that
the loop makes. So it holds on a busy machine too. Two readings of the clock a batch are left out.
``telemetry_overhead_wall`` is wall seconds with over without, the least of the rounds of each; it
means something on a quiet machine only. Both listeners were opened before: the start of MLflow with
a new store, 5 CPU seconds on its thread, is in neither.
"""

import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from bench.figure import Figure, figure, show, words
from bench.loop import BATCH, HIDDEN
from bench.made import InMemory, clicks
from drivetrain.core.batch import Batch
from drivetrain.core.metric import Emit, Metric, fan_out, silent
from drivetrain.core.seams import Run
from drivetrain.models import MLP
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, Single
from drivetrain.train.loop.loop import Loop
from drivetrain.train.loop.telemetry import Telemetry
from drivetrain.watch.listeners import Mlflow, TensorBoard
from drivetrain.watch.queued import Queued

GOAL = 1.02


def train(examples: InMemory, epochs: int, emit: Emit) -> None:
    """One whole training, from the same weights each time."""
    folder = Path(tempfile.mkdtemp())
    try:
        strategy = Single(loss=BinaryCrossEntropy("y"), epochs=epochs, batch_size=BATCH)
        model = build(MLP(hidden=HIDDEN), examples.features, seed=0)
        strategy.fit(model, examples, Run(directory=folder, emit=emit))
    finally:
        shutil.rmtree(folder)


def plainly(examples: InMemory, epochs: int) -> None:
    """The same training, with nobody who listens and nothing to hear."""

    def arriving(loop: Loop, batches: Iterable[Batch]) -> Iterator[Batch]:
        return iter(batches)

    def nothing(*args: object, **more: object) -> None:
        pass

    with (
        patch.object(Loop, "_arriving", arriving),
        patch.object(Telemetry, "begin", nothing),
        patch.object(Telemetry, "tell", nothing),
    ):
        train(examples, epochs, silent)


class Counting:
    """Hears how many metrics there were."""

    def __init__(self) -> None:
        self.metrics = 0

    def __call__(self, item: object) -> None:
        self.metrics += isinstance(item, Metric)


def seconds(work: Callable[[], None], listeners: Iterable[Queued] = ()) -> tuple[float, float]:
    """CPU seconds until all is written, and wall seconds of the work."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    wall = time.perf_counter() - wall
    for listener in listeners:
        while listener._waiting:
            time.sleep(0.05)
    time.sleep(0.5 if listeners else 0.0)  # the batch that was taken last is written
    return time.process_time() - cpu, wall


def shares(
    examples: InMemory, epochs: int, rounds: int, emit: Emit, listeners: Iterable[Queued]
) -> list[float]:
    """All CPU seconds of heard trainings over those that are not telemetry's."""
    clocks = [  # those of the listeners and of their writers: nobody else has a thread yet
        time.pthread_getcpuclockid(thread.ident)
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and thread.ident is not None
    ]
    spent = 0.0
    tell = Telemetry.tell

    def telling(telemetry: Telemetry, loop: Loop, *, now: bool = False) -> None:
        nonlocal spent
        begin = time.thread_time()
        tell(telemetry, loop, now=now)
        spent += time.thread_time() - begin

    found: list[float] = []
    with patch.object(Telemetry, "tell", telling):
        for _ in range(rounds):
            spent = -sum(map(time.clock_gettime, clocks))
            whole, _ = seconds(lambda: train(examples, epochs, emit), listeners)
            spent += sum(map(time.clock_gettime, clocks))
            found.append(whole / (whole - spent))
    return found


def figures(quick: bool) -> Iterator[Figure]:
    """``telemetry_overhead`` and ``telemetry_overhead_wall``: less is better."""
    torch.set_num_threads(1)
    examples = clicks(192 * BATCH)
    rounds, epochs = (5, 4) if quick else (15, 12)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        listeners: list[Queued] = [
            stack.enter_context(TensorBoard(folder / "tensorboard")),
            stack.enter_context(Mlflow(f"sqlite:///{folder}/mlflow.db", "bench")),
        ]
        heard = Counting()
        emit = fan_out([*listeners, heard])
        seconds(lambda: train(examples, 1, emit), listeners)
        plainly(examples, 1)
        heard.metrics = 0
        cpu = shares(examples, epochs, rounds, emit, listeners)
        heavy: list[float] = []
        light: list[float] = []
        for _ in range(rounds):
            light.append(seconds(lambda: plainly(examples, epochs))[1])
            heavy.append(seconds(lambda: train(examples, epochs, emit), listeners)[1])
        assert not any(listener.dropped for listener in listeners)
    updates = 2 * rounds * epochs * 192
    peer = f"itself, unheard; {heard.metrics} metrics of {updates} updates"
    yield figure("telemetry_overhead", cpu, peer, GOAL)
    wall = [a / b for a, b in zip(heavy, light, strict=True)]
    yield figure("telemetry_overhead_wall", wall, peer, GOAL, min(heavy) / min(light))


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
