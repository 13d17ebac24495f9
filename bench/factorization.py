"""Alternating least squares beside implicit, to the same loss, each in a process of one thread.

    python bench/factorization.py --quick --json

``als_vs_implicit`` is CPU seconds over CPU seconds of training alone, over made interactions
(seeded; items by a power law). Ours takes as few iterations as it needs for a loss that is no
greater than the one that implicit has after its 15: what is timed is the whole training with so
many. Its process is told to use one thread for the matrix products of numpy too, as implicit's is:
threads of these that wait for work would count as time of ours.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench.figure import Figure, figure, show, words
from bench.peer import ENVIRONMENTS, PEERS

ITERATIONS, ALPHA, L2, FACTORS = 15, 10.0, 10.0, 64
FEWEST = 4


def beside_implicit(quick: bool) -> Iterator[Figure]:
    """``als_vs_implicit``."""
    python = ENVIRONMENTS / "recall" / "bin" / "python"
    if not python.exists():
        raise RuntimeError("implicit is not installed; `make bench-setup` does that")
    users, items, rows = (50_000, 10_000, 1_000_000) if quick else (200_000, 20_000, 5_000_000)
    starts, columns = interactions(users, items, rows)
    ratios: list[float] = []
    with tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as folder:
        options = {"items": items, "alpha": ALPHA, "l2": L2, "factors": FACTORS}
        arrays = {"starts": starts, "columns": columns, "iterations": ITERATIONS}
        np.savez(Path(folder) / "als.npz", **arrays, **options)
        for seed in range(3):
            theirs = _told([str(python), str(PEERS / "recall_peers.py"), "als", folder])
            command = [sys.executable, __file__, "--child", folder, str(seed)]
            mine = _told([*command, str(theirs["loss"])])
            _say(f"implicit {theirs['seconds']:.2f} s, loss {theirs['loss']:.6f}; ours "
                 f"{mine['seconds']:.2f} s, {mine['done']} iterations, "
                 f"loss {mine['loss']:.6f}")  # fmt: skip
            ratios.append(theirs["seconds"] / mine["seconds"])
    yield figure("als_vs_implicit", ratios, "implicit 0.7.2, one thread, equal loss", 3.0)


def interactions(users: int, items: int, rows: int) -> tuple[Any, Any]:
    """Where the rows of made users begin, and the columns of their entries."""
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, items + 1) ** 0.8
    drawn = random.choice(items, rows, p=share / share.sum())
    pairs = np.unique(random.integers(0, users, rows) * items + drawn)
    lengths = np.bincount(pairs // items, minlength=users)
    return np.concatenate([[0], np.cumsum(lengths)]), (pairs % items).astype(np.int32)


def child(folder: Path, seed: int, wanted: float) -> None:
    """Train to a loss and print what the training took that came to it."""
    from drivetrain.train.als import ALS
    from drivetrain.train.recall import sharing
    from drivetrain.train.recall.interactions import Sparse
    from drivetrain.train.recall.least_squares import Factors, alternate, loss

    given = np.load(folder / "als.npz")
    columns, wide = given["columns"], int(given["items"])
    had = Sparse(given["starts"], columns, np.full(len(columns), ALPHA, np.float32), wide)
    assert had.turned.rows == wide
    reached, seconds, iterations = np.inf, 0.0, FEWEST - 1
    with mock.patch.object(sharing, "cores", return_value=1):
        while reached > wanted and iterations < 4 * ITERATIONS:
            iterations += 1
            random = np.random.default_rng(seed)
            items, users = (Factors.drawn(n, FACTORS, random) for n in (wide, had.rows))
            begin = time.process_time()
            turns = alternate(users, items, had, l2=L2, steps=ALS.steps, iterations=iterations)
            done = list(turns)
            seconds = time.process_time() - begin
            reached = loss(users, items, had, l2=L2)
            assert len(done) == iterations
    print(json.dumps({"seconds": seconds, "loss": reached, "done": iterations}))


def _told(command: list[str]) -> dict[str, Any]:
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **one}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    if done.returncode:
        raise RuntimeError(f"{command[1]}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
    else:
        options = words(__doc__)
        for each in beside_implicit(options.quick):
            show(each, options.json)
