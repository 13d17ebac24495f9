"""What joins a worker's model with the servers of rows: look-ups, gradients, snapshots."""

import socket
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from drivetrain.core.batch import Batch
from drivetrain.core.world import World
from drivetrain.models.embedding import Tables
from drivetrain.train.rows.client import Places, Pull, RowClient, Server, Wanted
from drivetrain.train.rows.held_rows import HeldRows, summed
from drivetrain.train.rows.optimizers import RowOptimizer
from drivetrain.train.rows.remote_embedding import RemoteEmbedding
from drivetrain.train.rows.server import RowServer
from drivetrain.train.rows.snapshots import RowSnapshots
from drivetrain.train.rows.spread import Ids, Rows, Spread
from drivetrain.train.together.group import Group

_HOST_BYTES = 64


class _Call(NamedTuple):
    """One look-up that was foreseen."""

    ids: Ids
    inverse: Ids


class Coming:
    """The rows of one batch, asked for before its forward.

    Attributes:
        wanted: for each table.
        calls: the look-ups in each table, in order.
        pull: their rows.
        leaves: the rows as tensors whose gradients are wanted; None until they were waited for.
    """

    def __init__(self, wanted: list[Wanted], calls: list[deque[_Call]], pull: Pull) -> None:
        self.wanted = wanted
        self.calls = calls
        self.pull = pull
        self.leaves: list[Tensor] | None = None


class RemoteTables:
    """The tables of one model: a server of this process's shard, and a client of all servers.

    Args:
        model: with a :class:`RemoteEmbedding` for each table.
        group: the processes, which all make one of these at the same time.
        world: their places.
        directory: of snapshots.
        optimizer: updates rows.
        seed: of the first values of rows.
        staleness: how many updates the rows that a batch sees may lack.
        seconds: how long anybody waits for anybody.

    Raises:
        ConnectionError: a process is missing; names it.
    """

    def __init__(
        self,
        model: nn.Module,
        group: Group,
        world: World,
        directory: Path,
        *,
        optimizer: RowOptimizer,
        seed: int,
        staleness: int,
        seconds: float,
    ) -> None:
        self.modules = [m for m in model.modules() if isinstance(m, RemoteEmbedding)]
        self.shapes = [module.shape for module in self.modules]
        self.staleness = staleness
        self.group = group
        self._device = next(model.parameters()).device
        self._present: Coming | None = None
        self._used: list[tuple[Sequence[Places], list[Tensor]]] = []
        self._none = [Places([np.zeros(0, np.int64)] * group.size) for _ in self.shapes]
        # The zoo's modules say which rows a batch needs; others ask when they look up.
        foreseeing = [m for m in model.modules() if isinstance(m, Tables)]
        self._foreseeing = [[m for m in foreseeing if m.table is each] for each in self.modules]
        self.snapshots = RowSnapshots(directory, self.shapes)
        tables: list[HeldRows] = []
        for number, module in enumerate(self.modules):
            spread = Spread(module.shape.rows, group.size)
            table = HeldRows(module.shape, spread, group.rank, optimizer, seed * 1_000_003 + number)
            if module.values is not None:
                table.put(np.arange(module.shape.rows), module.values, {})
                module.values = None
            module.tables, module.number = self, number
            tables.append(table)
        # It gives up before its workers do, for it knows who is missing.
        self._server = RowServer(tables, group.size, _own_host(world), seconds * 0.9)
        try:
            servers = _met(self._server, group)
            self._client = RowClient(servers, group.rank, self.shapes, seconds)
        except BaseException:
            self._server.close()
            raise

    @property
    def pushed(self) -> int:
        """Updates whose gradients this worker has sent."""
        return self._client.pushed

    def close(self) -> None:
        """Leave the servers, and end the own one."""
        self._client.close()
        self._server.close()

    # -- look-ups ----------------------------------------------------------------------------------

    def foresee(self, batch: Batch, update: int) -> Coming | None:
        """Ask for the rows that the zoo's tables need for a batch; None if that is none.

        Args:
            batch: examples.
            update: which one it is part of.
        """
        if not len(batch) or not any(self._foreseeing):
            return None
        inputs = {
            name: torch.from_numpy(column)
            for name, column in batch.columns.items()
            if isinstance(column, np.ndarray) and column.dtype == np.int64
        }
        wanted: list[Wanted] = []
        calls: list[deque[_Call]] = []
        for modules, spread in zip(self._foreseeing, self._client.spreads, strict=True):
            found = [ids.numpy() for module in modules for ids in module.lookups(inputs)]
            flat = [ids.reshape(-1) for ids in found]
            each = Wanted(np.concatenate(flat) if flat else np.zeros(0, np.int64), spread)
            inverses = np.split(each.inverse, np.cumsum([len(ids) for ids in flat])[:-1])
            pairs = zip(found, inverses, strict=False)
            calls.append(deque(_Call(ids, inverse.reshape(ids.shape)) for ids, inverse in pairs))
            wanted.append(each)
        return Coming(wanted, calls, self._client.pull(wanted, self._after(update)))

    def present(self, coming: Coming | None) -> None:
        """The next forward is that of this batch."""
        self._present = coming

    def look_up(self, table: int, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that learn, and where each id is found among them.

        Args:
            table: its number.
            ids: of any shape.
        """
        asked, coming = ids.detach().cpu().numpy(), self._present
        if coming is not None and coming.calls[table]:
            call = coming.calls[table][0]
            if np.array_equal(call.ids, asked):
                coming.calls[table].popleft()
                if coming.leaves is None:
                    coming.leaves = self._leaves(coming.wanted, coming.pull)
                return coming.leaves[table], self._tensor(call.inverse)
        wanted = Wanted(asked, self._client.spreads[table])
        all_wanted = [wanted if n == table else none for n, none in enumerate(self._none)]
        pull = self._client.pull(all_wanted, self._after(self.pushed))
        return self._leaves(all_wanted, pull)[table], self._tensor(wanted.inverse)

    def peek(self, table: int, ids: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`look_up`, after all updates, of rows that don't learn and don't come to exist
        by this."""
        wanted = Wanted(ids.detach().cpu().numpy(), self._client.spreads[table])
        all_wanted = [wanted if n == table else none for n, none in enumerate(self._none)]
        rows = self._client.wait(self._client.pull(all_wanted, self.pushed, peek=True))
        return self._tensor(rows[table]), self._tensor(wanted.inverse)

    def _after(self, update: int) -> int:
        return max(0, update - self.staleness)

    def _leaves(self, wanted: Sequence[Places], pull: Pull) -> list[Tensor]:
        leaves = [self._tensor(rows).requires_grad_() for rows in self._client.wait(pull)]
        self._used.append((wanted, leaves))
        return leaves

    def _tensor(self, array: Ids | Rows) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def push(self, lr: float, scale: float) -> None:
        """Send the gradients of an update, all of whose backwards are complete.

        Args:
            lr: the learning rate.
            scale: multiplies them.
        """
        wanted, gradients = (
            list(self._none),
            [np.zeros((0, s.dim), np.float32) for s in self.shapes],
        )
        used = [(places, [_gradient(leaf) for leaf in leaves]) for places, leaves in self._used]
        if len(used) == 1:
            wanted, gradients = list(used[0][0]), used[0][1]
        elif used:
            for number in range(len(self.shapes)):
                parts = [(places[number], each[number]) for places, each in used]
                wanted[number], gradients[number] = _merged(parts, self.group.size)
        if scale != 1:
            gradients = [gradient * np.float32(scale) for gradient in gradients]
        self._client.push(wanted, gradients, lr)
        self._used.clear()

    # -- snapshots ---------------------------------------------------------------------------------

    def save(self, when: str) -> bytes:
        """Write the own shard as it is after all updates so far; the digest of the file.

        Raises:
            ConnectionError: gradients of another worker are missing; names it.
            OSError: it can't be written.
        """
        found: list[bytes] = []

        def write(tables: Sequence[HeldRows]) -> None:
            who = f"{self.group.rank}of{self.group.size}"
            found.append(self.snapshots.save(tables, when, self.pushed, who))

        self._server.held(self.pushed, write)
        if when != "final":
            self.snapshots.forget(when)
        return found[0]

    def load(self, digests: Sequence[bytes]) -> None:
        """Go on from a snapshot, of any number of processes.

        Raises:
            ConnectionError: another process did not come this far.
            OSError: a file is gone or damaged.
        """
        taken = 0

        def read(tables: Sequence[HeldRows]) -> None:
            nonlocal taken
            for path in map(self.snapshots.find, digests):
                taken = self.snapshots.taken(path)
                for number, table in enumerate(tables):
                    for some in self.snapshots.rows(path, number):
                        table.put(*some)
                    table.steps = taken

        self._server.held(0, read)
        self._server.at(taken)
        self._client.pushed = taken
        self.group.sum(torch.zeros(1))  # nobody pulls before all have read


def _gradient(leaf: Tensor) -> Rows:
    if leaf.grad is None:
        return np.zeros(tuple(leaf.shape), np.float32)
    return leaf.grad.cpu().numpy()


def _merged(parts: Sequence[tuple[Places, Rows]], servers: int) -> tuple[Places, Rows]:
    """The rows of several batches, each once, with the sum of their gradients."""
    found: list[tuple[Ids, Rows]] = []
    for server in range(servers):
        places = np.concatenate([each.places[server] for each, _ in parts])
        gradients = np.concatenate([each.of(server, rows) for each, rows in parts])
        found.append(summed(places, gradients))
    return Places([places for places, _ in found]), np.concatenate([rows for _, rows in found])


def _own_host(world: World) -> str:
    """The address under which the others reach this machine: loopback where they all are on it."""
    address = socket.gethostbyname(world.address)
    if address.startswith("127."):
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, world.port or 9))  # sends nothing; the kernel picks the interface
        return probe.getsockname()[0]


def _met(server: RowServer, group: Group) -> list[Server]:
    """The servers of all processes, by rank."""
    host, port = server.address
    text = f"{host}:{port}".encode().ljust(_HOST_BYTES)
    found: list[Server] = []
    for row in group.gather(to_bytes(text + server.token)):
        data = row.numpy().tobytes()
        host, _, port = data[:_HOST_BYTES].decode().strip().rpartition(":")
        found.append(Server(host, int(port), data[_HOST_BYTES:]))
    return found


def to_bytes(data: bytes) -> Tensor:
    """Bytes as a tensor that processes can gather."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
