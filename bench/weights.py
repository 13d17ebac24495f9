"""What each worker's memory is of its own, and what several workers need together.

    python bench/weights.py --quick --json

The click model of `bench/placement.py` with tables of 80 MB, served by 1, 2 and 4 workers, after
each has looked up rows all over the tables. A worker's own are pages that are no file's; together
counts every page once (PSS over all processes). The peer is the same server with a copy in each
worker.
"""

import http.client
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench.figure import Figure, figure, show, words
from bench.placement import click
from drivetrain.core.bundle import Bundle

VALUES = 50_000
"""Of each of 26 categories, 16 wide: 83 MB of float32."""

SERVE = """
import sys
from pathlib import Path
from drivetrain.serve import server
shared = server.shared_weights  # an error where it has another name
if sys.argv[3] == "copies":
    server.shared_weights = lambda needed: None
served = server.Server({"click": Path(sys.argv[1])}, port=0, workers=int(sys.argv[2]))
sys.exit(served.run(lambda: print(served.port, flush=True)))
"""


def figures(quick: bool) -> Iterator[Figure]:
    """``own_mb_of_1_workers`` (``_2_``, ``_4_``) and ``copies_vs_shared_mb_of_4_workers``."""
    rounds = 2 if quick else 5
    with tempfile.TemporaryDirectory() as folder:
        bundle = click(Path(folder), values=VALUES)
        for workers in (1, 2, 4):
            own = [mb for _ in range(rounds) for mb in _memory(bundle, workers, "shared", "own")]
            goal = 60.0 if workers > 1 else 150.0
            yield figure(f"own_mb_of_{workers}_workers", own, "none: a bound", goal)
        ratios = [
            sum(_memory(bundle, 4, "copies", "all")) / sum(_memory(bundle, 4, "shared", "all"))
            for _ in range(rounds)
        ]
        yield figure("copies_vs_shared_mb_of_4_workers", ratios, "a copy in each worker", 2.0)


def _memory(bundle: Bundle, workers: int, how: str, what: str) -> list[float]:
    """Megabytes of each process: those that serve, or ``all``."""
    with _serving(bundle, workers, how) as (pid, port):
        for seed in range(8 * workers):  # a new connection each, which the kernel spreads
            _ask(port, seed)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pids = [int(child) for child in children] or [pid]
        if what == "own":
            return [_smaps(each)["Anonymous"] / 1024 for each in pids]
        return [_smaps(each)["Pss"] / 1024 for each in {pid, *pids}]


@contextmanager
def _serving(bundle: Bundle, workers: int, how: str) -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-c", SERVE, str(bundle.path), str(workers), how]
    root = Path(__file__).resolve().parent.parent
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    assert child.stdout is not None
    try:
        yield child.pid, int(child.stdout.readline())
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(30)
        finally:
            child.kill()
            child.stdout.close()


def _ask(port: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = [
        {
            "categories": random.integers(0, VALUES, 26).tolist(),
            "numbers": random.normal(size=13).tolist(),
        }
        for _ in range(200)
    ]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/predict/click", json.dumps({"rows": rows}))
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"status {answer.status}: {text[:200]!r}")
    finally:
        connection.close()


def _smaps(pid: int) -> Mapping[str, int]:
    """Kilobytes by kind, as the kernel sums them over all mappings."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
