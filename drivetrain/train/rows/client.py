"""A worker's side of the servers of rows: one round trip for all tables, begun ahead of time."""

import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from drivetrain.train.rows import frames
from drivetrain.train.rows.held_rows import TableShape
from drivetrain.train.rows.spread import Ids, Rows, Spread


class Server(NamedTuple):
    """Where the rows of one process are served, and what opens its door."""

    host: str
    port: int
    token: bytes


class Places:
    """Distinct rows of one table in the order in which the servers hold them.

    Args:
        places: one array for each server; rows come in this order, one behind another.

    Attributes:
        places: as given.
        ends: where the rows of each server begin, and where the last ones end.
    """

    def __init__(self, places: Sequence[Ids]) -> None:
        self.places = places
        self.ends = [0, *accumulate(map(len, places))]

    @property
    def count(self) -> int:
        """How many rows."""
        return self.ends[-1]

    def of(self, server: int, rows: Rows) -> Rows:
        """The part of ``[count, dim]`` that one server holds."""
        return rows[self.ends[server] : self.ends[server + 1]]


class Wanted(Places):
    """The rows of some ids.

    Args:
        ids: of any shape; an id may come several times.
        spread: says who holds them.

    Attributes:
        inverse: where each id is found among the rows, in the shape of ``ids``.

    Raises:
        IndexError: the table has no such id.
    """

    def __init__(self, ids: Ids, spread: Spread) -> None:
        distinct, inverse = _distinct(ids.reshape(-1))
        if len(distinct) and not 0 <= distinct[0] <= distinct[-1] < spread.rows:
            raise IndexError(
                f"ids of a table: found {distinct[0]} to {distinct[-1]}, "
                f"allowed: 0 to {spread.rows - 1}."
            )
        owners, places = spread.places(distinct)
        if spread.shards == 1:
            super().__init__([places])
        else:
            order = owners.argsort(kind="stable")
            ends = np.cumsum(np.bincount(owners, minlength=spread.shards))
            super().__init__(np.split(places[order], ends[:-1]))
            rank = np.empty_like(order)
            rank[order] = np.arange(len(order))
            inverse = rank[inverse]
        self.inverse: Ids = inverse.reshape(ids.shape)


def _distinct(ids: Ids) -> tuple[Ids, Ids]:
    """Each id once, ascending, and where each stands there: ``np.unique`` in half of its time."""
    order = ids.argsort()
    ordered, inverse = ids[order], np.empty_like(order)
    first = np.ones(len(ids), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    inverse[order] = first.cumsum() - 1
    return ordered[first], inverse


class Pull:
    """Rows that were asked for and may still be on their way.

    Attributes:
        rows: ``[count, dim]`` of each table; complete after :meth:`RowClient.wait`.
    """

    def __init__(self, wanted: Sequence[Places], dims: Sequence[int], servers: int) -> None:
        self.rows: list[Rows] = [
            np.empty((each.count, dim), np.float32) for each, dim in zip(wanted, dims, strict=True)
        ]
        self.parts = [
            [each.of(n, rows) for each, rows in zip(wanted, self.rows, strict=True)]
            for n in range(servers)
        ]
        self.missing = {n for n, parts in enumerate(self.parts) if any(map(len, parts))}


class RowClient:
    """One worker's connections to all servers of rows.

    Args:
        servers: by rank.
        rank: of this worker.
        shapes: the tables, in the order that all processes have.
        seconds: how long an answer is waited for at most.

    Raises:
        ConnectionError: a server is not there; names it.
    """

    def __init__(
        self, servers: Sequence[Server], rank: int, shapes: Sequence[TableShape], seconds: float
    ) -> None:
        self.shapes = shapes
        self.spreads = [Spread(shape.rows, len(servers)) for shape in shapes]
        self.pushed = 0
        self._rank = rank
        self._seconds = seconds
        self._dims = [shape.dim for shape in shapes]
        self._waiting: list[deque[Pull]] = [deque() for _ in servers]
        self._connections: list[socket.socket] = []
        self._readers: list[frames.Reader] = []
        for number, server in enumerate(servers):
            with self._naming(number, "a connection"):
                self._connect(server)

    def _connect(self, server: Server) -> None:
        connection = socket.create_connection((server.host, server.port), timeout=self._seconds)
        frames.prepare(connection, self._seconds)
        self._connections.append(connection)
        self._readers.append(frames.Reader(connection))
        frames.send(connection, frames.HELLO, self._rank, [server.token], len(self.shapes))

    def pull(self, wanted: Sequence[Places], after: int, *, peek: bool = False) -> Pull:
        """Ask for rows of all tables; :meth:`wait` for them later.

        Args:
            wanted: one for each table.
            after: how many updates must have been taken; no more than were pushed.
            peek: rows that nobody has seen shall not come to exist by this.

        Raises:
            ConnectionError: a server has gone; names it.
        """
        assert after <= self.pushed, "this would wait for an own push"
        pull = Pull(wanted, self._dims, len(self._connections))
        kind = frames.PEEK if peek else frames.PULL
        for number in sorted(pull.missing):
            body = frames.request([each.places[number] for each in wanted])
            self._read_on(number)
            with self._naming(number, "room for a pull"):
                frames.send(self._connections[number], kind, after, body, len(wanted))
            self._waiting[number].append(pull)
        return pull

    def wait(self, pull: Pull) -> list[Rows]:
        """The rows ``[count, dim]`` of each table.

        Raises:
            ConnectionError: a server has gone, or waited in vain for a worker; names them.
        """
        for number in sorted(pull.missing):
            with self._naming(number, "rows"):
                while number in pull.missing:
                    first = self._waiting[number].popleft()
                    self._receive(number, first)
        return pull.rows

    def _read_on(self, number: int) -> None:
        """Read what a server has to say: while it waits for room for rows it reads nothing."""
        with self._naming(number, "rows"):
            while self._waiting[number]:
                self._receive(number, self._waiting[number].popleft())

    def _receive(self, number: int, pull: Pull) -> None:
        reader, parts = self._readers[number], pull.parts[number]
        frame = reader.frame()
        if frame.kind == frames.ERROR:
            raise ConnectionError(bytes(reader.body(frame.length)).decode(errors="replace"))
        if frame.kind != frames.ROWS or frame.length != sum(part.nbytes for part in parts):
            raise ConnectionError(f"an answer of kind {frame.kind} with {frame.length} bytes")
        for part in parts:
            if len(part):
                reader.into(part.data.cast("B"))
        pull.missing.discard(number)

    def push(self, wanted: Sequence[Places], gradients: Sequence[Rows], lr: float) -> None:
        """Send the gradients of an update; nothing is waited for.

        Args:
            wanted: one for each table.
            gradients: ``[count, dim]`` of each table.
            lr: the learning rate.

        Raises:
            ConnectionError: a server has gone or does not read; names it.
        """
        for number, connection in enumerate(self._connections):
            places = [each.places[number] for each in wanted]
            parts = [
                each.of(number, gradient) for each, gradient in zip(wanted, gradients, strict=True)
            ]
            self._read_on(number)
            with self._naming(number, "room for gradients"):
                body = frames.update(places, parts, lr)
                frames.send(connection, frames.PUSH, self.pushed, body, len(wanted))
        self.pushed += 1

    def close(self) -> None:
        """Leave the servers."""
        for connection in self._connections:
            connection.close()

    @contextmanager
    def _naming(self, number: int, what: str) -> Iterator[None]:
        """Say which server was waited for."""
        where = f"rank {self._rank} waited for {what} from the server of rank {number}"
        try:
            yield
        except TimeoutError as error:
            raise ConnectionError(f"{where} for {self._seconds:g} s in vain.") from error
        except OSError as error:
            raise ConnectionError(f"{where} in vain: {error}.") from error
