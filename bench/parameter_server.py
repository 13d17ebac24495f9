"""Servers of rows beside torch RPC: pulls and pushes a second, and the memory of a large table.

    python bench/parameter_server.py --quick --json

One server process and one worker process on loopback, one thread each, messages of 256 distinct
rows of 16 numbers, row-wise Adagrad on the server. Each side does what its user would have it do.
Ours: find the distinct ids, ask, take the answer; a push sends ids and gradients and waits for
nothing, and a pull behind the last one waits until all were applied. torch RPC: `rpc_sync` for a
pull; `rpc_async` for pushes, all waited for at the end, which is its faster way (TensorPipe, the
back end that it has). The two take turns in one run. Figures are messages a second by the clock,
and with `_cpu` by the CPU seconds of both processes together, which say more on a machine that is
busy with other work: torch RPC has a pool of threads to win the cores with.

`ps_rows_10m_mb` is what training adds to a process: a table of 10 million rows of 16 with row-wise
Adagrad, of which made batches with a long tail touch some hundred thousand. The whole table with
its optimizer would take 680 MB.
"""

import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from bench.figure import Figure, figure, seconds_of, show, words
from drivetrain.train.rows.client import RowClient, Server, Wanted
from drivetrain.train.rows.held_rows import HeldRows, TableShape
from drivetrain.train.rows.optimizers import RowAdagrad
from drivetrain.train.rows.server import RowServer
from drivetrain.train.rows.spread import Spread, Start

ROWS, DIM, MESSAGE = 100_000, 16, 256
LARGE = 10_000_000
SHAPE = TableShape("table", ROWS, DIM, Start("normal", 0.0, 0.05))


# -- ours ------------------------------------------------------------------------------------------


def serve_rows(pipe: Connection) -> None:
    """The server process of ours."""
    torch.set_num_threads(1)
    table = HeldRows(SHAPE, Spread(ROWS, 1), 0, RowAdagrad(by_row=True), 0)
    server = RowServer([table], 1)
    pipe.send((*server.address, server.token))
    answer_cpu(pipe)
    server.close()


class Ours:
    """A worker of ours."""

    def __init__(self, pipe: Connection, ids: list[np.ndarray]) -> None:
        self.client = RowClient([Server(*pipe.recv())], 0, [SHAPE], 30)
        self.ids = ids
        self.gradient = np.full((MESSAGE, DIM), 0.01, np.float32)

    def pull(self) -> None:
        client, spread = self.client, self.client.spreads[0]
        for ids in self.ids:
            client.wait(client.pull([Wanted(ids, spread)], client.pushed))

    def push(self) -> None:
        client, spread = self.client, self.client.spreads[0]
        for ids in self.ids:
            client.push([Wanted(ids, spread)], [self.gradient], 0.1)
        client.wait(client.pull([Wanted(self.ids[0][:1], spread)], client.pushed))


# -- torch RPC -------------------------------------------------------------------------------------


class Held:
    """What the server of torch RPC holds."""

    table = torch.zeros(0)
    squares = torch.zeros(0)


def rpc_pull(ids: torch.Tensor) -> torch.Tensor:
    return Held.table.index_select(0, ids)


def rpc_push(ids: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
    Held.squares.index_add_(0, ids, gradient.square().mean(1))
    scale = Held.squares.index_select(0, ids).sqrt_().add_(1e-10)
    Held.table.index_add_(0, ids, gradient / scale[:, None], alpha=-lr)


def join_rpc(rank: int, port: int) -> Any:
    """Enter a group of two; the module of torch RPC."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.distributed import rpc

        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        rpc.init_rpc(f"process-{rank}", rank=rank, world_size=2)
    return rpc


def serve_rpc(pipe: Connection, port: int) -> None:
    """The server process of torch RPC."""
    torch.set_num_threads(1)
    Held.table, Held.squares = torch.randn(ROWS, DIM) * 0.05, torch.zeros(ROWS)
    rpc = join_rpc(1, port)
    answer_cpu(pipe)
    rpc.shutdown()


class Peer:
    """A worker of torch RPC."""

    def __init__(self, port: int, ids: list[np.ndarray]) -> None:
        self.rpc = join_rpc(0, port)
        self.ids = [torch.from_numpy(each) for each in ids]
        self.gradient = torch.full((MESSAGE, DIM), 0.01)

    def pull(self) -> None:
        for ids in self.ids:
            self.rpc.rpc_sync("process-1", rpc_pull, (ids,))

    def push(self) -> None:
        futures = [
            self.rpc.rpc_async("process-1", rpc_push, (ids, self.gradient, 0.1)) for ids in self.ids
        ]
        torch.futures.wait_all(futures)


# -- both in turn ----------------------------------------------------------------------------------


def answer_cpu(pipe: Connection) -> None:
    """Say how many CPU seconds this process has taken whenever it is asked, until the end."""
    while pipe.recv():
        pipe.send(time.process_time())


def cpu_of(pipe: Connection) -> float:
    """CPU seconds of this process and of the server behind ``pipe``."""
    pipe.send(True)
    return time.process_time() + pipe.recv()


def speeds(quick: bool) -> Iterator[Figure]:
    """Messages a second over those of torch RPC."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    generator = np.random.default_rng(0)
    count = 400 if quick else 1000
    ids = [generator.choice(ROWS, MESSAGE, replace=False) for _ in range(count)]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    pipes, servers = {}, []
    for name, target, more in (("ours", serve_rows, ()), ("rpc", serve_rpc, (port,))):
        pipes[name], theirs = context.Pipe()
        servers.append(context.Process(target=target, args=(theirs, *more), daemon=True))
        servers[-1].start()
        theirs.close()
    ours, peer = Ours(pipes["ours"], ids), Peer(port, ids)
    name = f"torch {torch.__version__} RPC (TensorPipe), {MESSAGE} rows of {DIM}"
    rounds = 7 if quick else 15
    slower: Figure | None = None
    for what in ("pull", "push"):
        sides = {"ours": getattr(ours, what), "rpc": getattr(peer, what)}
        wall, cpu = in_turn(sides, pipes, rounds, count, what)
        found = figure(f"ps_vs_torch_rpc_{what}", wall, name, 3)
        yield found
        yield figure(f"ps_vs_torch_rpc_{what}_cpu", cpu, name, 3)
        if slower is None or found["value"] < slower["value"]:
            slower = Figure({**found, "figure": "parameter_server_vs_torch_rpc"})
    if slower is not None:  # one word for both
        yield slower
    for pipe in pipes.values():
        pipe.send(False)
    ours.client.close()
    peer.rpc.shutdown()
    for server in servers:
        server.join()


def in_turn(
    sides: dict[str, Callable[[], None]],
    pipes: dict[str, Connection],
    rounds: int,
    count: int,
    what: str,
) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of torch RPC over those of ours, round by round."""
    ratios: list[float] = []
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for work in sides.values():
        work()
    for number in range(rounds):
        wall: dict[str, float] = {}
        for name in sorted(sides, reverse=number % 2 == 1):
            before = cpu_of(pipes[name])
            wall[name] = seconds_of(sides[name])
            cpu[name].append((cpu_of(pipes[name]) - before) / count * 1e6)
        ratios.append(wall["rpc"] / wall["ours"])
    middle = {name: statistics.median(values) for name, values in cpu.items()}
    print(
        f"a {what} costs {middle['ours']:.0f} µs of CPU, with torch RPC {middle['rpc']:.0f} "
        f"(both processes): {middle['rpc'] / middle['ours']:.1f} to 1",
        file=sys.stderr,
    )
    return ratios, [rpc / own for rpc, own in zip(cpu["rpc"], cpu["ours"], strict=True)]


# -- memory ----------------------------------------------------------------------------------------


def grow(pipe: Connection, batches: int) -> None:
    """Train on made ids with a long tail; send megabytes added and rows held."""
    from drivetrain.core.seams import Run
    from drivetrain.models import MLP
    from drivetrain.train import BinaryCrossEntropy, ParameterServer

    torch.set_num_threads(1)
    examples = long_tail(512)(batches)
    strategy = ParameterServer(
        loss=BinaryCrossEntropy("y"), batch_size=512, checkpoint_seconds=None
    )
    examples_small = long_tail(512)(2)
    with tempfile.TemporaryDirectory() as folder:  # what any training loads is no table's
        train(strategy, MLP(hidden=(16,), dim=DIM), examples_small, Run(directory=Path(folder)))
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        fitted = train(strategy, MLP(hidden=(16,), dim=DIM), examples, Run(directory=Path(folder)))
    held = max(t.shape[0] for n, t in fitted.state_dict().items() if n.endswith("table.weight"))
    pipe.send((peak() - before, held))


def train(strategy: Any, factory: Any, examples: Any, run: Any) -> Any:
    return strategy.fit(strategy.build(factory, examples.features, seed=0), examples, run)


def long_tail(size: int) -> Callable[[int], Any]:
    """A class of examples whose ids of ten million are those of a long tail."""
    from bench.made import NUMBERS, InMemory, clicks
    from drivetrain.core.batch import Batch
    from drivetrain.core.schema import FeatureField, FeatureSchema

    features = FeatureSchema(
        (
            FeatureField(name="numbers", kind="dense", width=NUMBERS),
            FeatureField(name="item", kind="index", width=4, cardinality=LARGE // 4),
        )
    )

    class LongTail(InMemory):
        def __init__(self, batches: int) -> None:
            super().__init__(features, clicks(size).splits)
            self.count = batches

        def rows(self, split: Any) -> int | None:
            return self.count * size if split == "train" else 0

        def batches(self, split: Any, *args: Any, **more: Any) -> Iterator[Batch]:
            for number in range(self.count if split == "train" else 0):
                generator = np.random.default_rng(number)
                drawn = generator.pareto(0.3, (size, 4)) * 10
                index = np.minimum(drawn, LARGE // 4 - 1).astype(np.int64)
                yield Batch({**self.columns, "index": index})

    return LongTail


def peak() -> float:
    """Megabytes that this process has held at most."""
    # ru_maxrss would remember that of the process that started this one.
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1.024e-3


def memory(quick: bool) -> Iterator[Figure]:
    """Megabytes that the training of a table of ten million rows adds to a process."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=grow, args=(theirs, 400 if quick else 1000), daemon=True)
    process.start()
    theirs.close()  # or else a child that died would be waited for
    added, held = pipe.recv()
    process.join()
    whole = LARGE * (DIM + 1) * 4 / 1e6
    print(f"{held} of {LARGE} rows were seen", file=sys.stderr)
    peer = f"the whole table with row-wise Adagrad, {whole:.0f} MB"
    yield figure("ps_rows_10m_mb", [added], peer, whole / 3)


def figures(quick: bool) -> Iterator[Figure]:
    """All of them."""
    yield from speeds(quick)
    yield from memory(quick)


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
