"""Trainings in two processes: beside raw DDP on one machine, and over a link of 100 Mbit/s.

    python bench/distributed.py --quick --json

The link joins two network namespaces (Linux, root, `ip` and `tc`); without them its figures are
absent. Sides take turns within a round, and a ratio is of updates a second in the same round.

``…_loss_over_plain`` is the loss on held-out made rows at the end of a training, over that of
AllReduce without compression: equally many updates each, from the same weights over the same rows,
in four epochs, with a learning rate that goes down to nothing along half a cosine. What travels is
the same over any network, so these trainings take the machine's own loopback. After the hundred
updates with which the speeds are measured neither side has learnt: both losses are a coin's.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.figure import Figure, figure, show, words

WORKER = Path(__file__).with_name("distributed_worker.py")
RATE = "100mbit"
_SECONDS = 600


def figures(quick: bool) -> Iterator[Figure]:
    """All that this machine can measure."""
    yield from _beside_ddp(quick)
    yield from _losses(quick)
    if os.geteuid() or not (shutil.which("ip") and shutil.which("tc")):
        print("no figures of a slow link: it needs root, ip and tc", file=sys.stderr)
        return
    with link() as places:
        yield from _over(places, quick)


def _beside_ddp(quick: bool) -> Iterator[Figure]:
    here = ([], [])
    steps, rounds = (200, 5) if quick else (400, 9)
    ratios: list[float] = []
    for number in range(rounds):
        order = ("plain", "ddp") if number % 2 else ("ddp", "plain")
        found = {kind: run(kind, steps, here, "127.0.0.1")["rate"] for kind in order}
        ratios.append(found["plain"] / found["ddp"])
    yield figure("allreduce_vs_raw_ddp", ratios, "raw PyTorch DDP, 2 processes, gloo", 0.97)


GOALS = {"fp16": 1.8, "powersgd": 8.0, "topk": 2.0, "diloco": 6.0}
"""Of speed over the slow link."""
_PEER = "AllReduce without compression"


def _losses(quick: bool) -> Iterator[Figure]:
    """The end of long trainings: less is better."""
    steps, epoch = (2000, 500) if quick else (4000, 1000)
    found = {
        kind: run(kind, steps, ([], []), "127.0.0.1", epoch)["loss"] for kind in ("plain", *GOALS)
    }
    for kind in GOALS:
        peer = f"{_PEER}, {found['plain']:.4g} after {steps} updates"
        yield figure(f"{kind}_loss_over_plain", [found[kind] / found["plain"]], peer, 1.01)


def _over(places: Sequence[Sequence[str]], quick: bool) -> Iterator[Figure]:
    """Speeds over the link."""
    rates: dict[str, list[float]] = {kind: [] for kind in ("plain", *GOALS)}
    for _ in range(2 if quick else 4):
        for kind, found in rates.items():
            found.append(run(kind, 100, places, "10.99.77.1")["rate"])
    for kind, goal in GOALS.items():
        ratios = [a / b for a, b in zip(rates[kind], rates["plain"], strict=True)]
        yield figure(f"{kind}_vs_plain_100mbit", ratios, _PEER, goal)


def run(
    kind: str,
    steps: int,
    places: Sequence[Sequence[str]],
    address: str,
    epoch: int | None = None,
) -> dict[str, float]:
    """What rank 0 of a training says.

    Args:
        kind: which strategy.
        steps: updates.
        places: for each rank the words in front of its command.
        address: where rank 0 is.
        epoch: updates an epoch; None takes one epoch.

    Raises:
        RuntimeError: a process failed.
    """
    port = _free_port()
    processes = [
        subprocess.Popen(
            [
                *place,
                sys.executable,
                str(WORKER),
                kind,
                str(steps),
                *([str(epoch)] if epoch else []),
            ],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "WORLD_SIZE": str(len(places)),
                "MASTER_ADDR": address,
                "MASTER_PORT": str(port),
                **({"GLOO_SOCKET_IFNAME": f"bench{rank}"} if place else {}),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, place in enumerate(places)
    ]
    try:
        outputs = [process.communicate(timeout=_SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{kind}: a process ended with {[p.returncode for p in processes]}")
    return json.loads(outputs[0].splitlines()[-1])


@contextlib.contextmanager
def link() -> Iterator[tuple[list[str], list[str]]]:
    """Two network namespaces that a link of :data:`RATE` joins; what runs a command in each."""
    names = [f"drivetrain-bench-{os.getpid()}-{rank}" for rank in (0, 1)]
    try:
        for name in names:
            _do("ip", "netns", "add", name)
        _do(
            *("ip", "link", "add", "bench0", "netns", names[0], "type", "veth"),
            *("peer", "name", "bench1", "netns", names[1]),
        )
        for rank, name in enumerate(names):
            there, device = ("ip", "-n", name), f"bench{rank}"
            _do(*there, "addr", "add", f"10.99.77.{rank + 1}/24", "dev", device)
            _do(*there, "link", "set", "lo", "up")
            _do(*there, "link", "set", device, "up")
            # Segments as a network card would send them, or a burst would be one huge packet.
            _do("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", device, "root", "tbf",
                "rate", RATE, "burst", "64kb", "latency", "50ms")  # fmt: skip
        yield tuple(["ip", "netns", "exec", name] for name in names)  # pyright: ignore[reportReturnType]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
