"""A training in two stages, each in a process of its own, beside one process that does all of it.

    python bench/pipelined.py --quick --json

Both take the same micro-batches through the same perceptron, and sides take turns within a round;
a ratio is of rows a second in the same round. Of ``stages`` equal stages and ``m`` micro-batches to
a batch the best that can be is ``stages · m / (m + stages - 1)``: at the beginning and the end of
each batch some stages have nothing to do. ``pipelined_of_the_possible`` is the ratio over that. It
needs a quiet core for each process.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.figure import Figure, figure, show, words
from bench.processes import free_port

STAGES = 2
MICRO_BATCHES = 8
ROWS = 128
"""Of a micro-batch."""
_WIDTH = 1024
_SECONDS = 300


def figures(quick: bool) -> Iterator[Figure]:
    """Both figures."""
    updates, rounds = (16, 3) if quick else (40, 5)
    ratios: list[float] = []
    for number in range(rounds):
        order = (STAGES, 1) if number % 2 else (1, STAGES)
        rates = {size: _run(size, updates) for size in order}
        ratios.append(rates[STAGES] / rates[1])
    possible = STAGES * (1 - (STAGES - 1) / (MICRO_BATCHES + STAGES - 1))
    peer = f"one process, the same micro-batches; {possible:.3g} is possible"
    yield figure("pipelined_vs_one_process", ratios, peer, 0.9 * possible)
    yield figure("pipelined_of_the_possible", [r / possible for r in ratios], peer, 0.9)


def _run(size: int, updates: int) -> float:
    """Rows a second of a training in so many processes."""
    port = str(free_port())
    command = [sys.executable, str(Path(__file__)), "worker", str(updates)]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size), "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            command, env={**common, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(size)
    ]
    try:
        outputs = [process.communicate(timeout=_SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a process ended with {[p.returncode for p in processes]}")
    return json.loads(outputs[0].splitlines()[-1])


def worker(updates: int) -> float:
    """One process of a training; rows a second after the first updates."""
    import torch

    from bench.distributed_worker import BATCH, Timed
    from drivetrain.core.seams import Run
    from drivetrain.core.world import World
    from drivetrain.models import MLP
    from drivetrain.models.bind import build
    from drivetrain.train import BinaryCrossEntropy, Pipelined, Single

    torch.set_num_threads(1)
    world = World.of()
    options: dict[str, Any] = {"loss": BinaryCrossEntropy("y"), "checkpoint_seconds": None}
    if world.size > 1:
        options |= {"batch_size": ROWS * MICRO_BATCHES, "micro_batches": MICRO_BATCHES}
        strategy: Single = Pipelined(stages=world.size, **options)
    else:
        strategy = Single(batch_size=ROWS, accumulate=MICRO_BATCHES, **options)
    examples = Timed(updates * ROWS * MICRO_BATCHES // BATCH)  # counts in batches of its own
    model = build(MLP(hidden=(_WIDTH,) * 6), examples.features, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        strategy.fit(model, examples, Run(directory=Path(folder), world=world))
    return examples.rate * options.get("batch_size", ROWS)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        print(json.dumps(worker(int(sys.argv[2]))))
        sys.exit()
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
