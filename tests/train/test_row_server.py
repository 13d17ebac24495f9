"""Servers of rows and their workers: bounds on staleness and on every wait, and strict frames."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from drivetrain.train.rows import frames
from drivetrain.train.rows.client import RowClient, Server, Wanted
from drivetrain.train.rows.held_rows import HeldRows, TableShape
from drivetrain.train.rows.optimizers import RowSGD
from drivetrain.train.rows.server import RowServer
from drivetrain.train.rows.spread import Spread, Start

SHAPES = [TableShape("a", 100, 4, Start("constant", 0)), TableShape("b", 7, 1, Start("constant"))]
Make = Callable[..., tuple[list[RowServer], list[RowClient]]]


@pytest.fixture
def made_servers() -> Iterator[Make]:
    """``made_servers(servers, workers, seconds)``: that many of each, all connected."""
    servers: list[RowServer] = []
    clients: list[RowClient] = []

    def make(count: int, workers: int, seconds: float = 10) -> Any:
        for shard in range(count):
            tables = [HeldRows(s, Spread(s.rows, count), shard, RowSGD(), 0) for s in SHAPES]
            servers.append(RowServer(tables, workers, seconds=seconds))
        where = [Server(*server.address, server.token) for server in servers]
        clients.extend(RowClient(where, rank, SHAPES, seconds * 2) for rank in range(workers))
        return servers, clients

    yield make
    for each in (*clients, *servers):
        each.close()


def want(client: RowClient, *ids: Any) -> list[Wanted]:
    pairs = zip(ids, client.spreads, strict=True)
    return [Wanted(np.array(each, np.int64), spread) for each, spread in pairs]


def push(client: RowClient, wanted: list[Wanted], value: float) -> None:
    pairs = zip(wanted, SHAPES, strict=True)
    gradients = [np.full((each.count, shape.dim), value, np.float32) for each, shape in pairs]
    client.push(wanted, gradients, 1.0)


@pytest.mark.parametrize("servers", [1, 3])
def test_rows_of_all_tables_come_in_one_round_trip(made_servers: Make, servers: int) -> None:
    _, (client,) = made_servers(servers, 1)
    wanted = want(client, [[5, 9, 5], [99, 0, 9]], [3, 3])
    push(client, wanted, -2.0)
    rows = client.wait(client.pull(wanted, 1))
    assert [part.shape for part in rows] == [(4, 4), (1, 1)]
    assert rows[0][wanted[0].inverse].shape == (2, 3, 4)
    assert np.all(rows[0] == 2)
    untouched = want(client, [50, 5], [])
    rows = client.wait(client.pull(untouched, 1))
    assert rows[0][untouched[0].inverse].tolist() == [[0] * 4, [2] * 4]


def test_gradients_of_all_workers_are_one_update(made_servers: Make) -> None:
    (server,), clients = made_servers(1, 3)
    for rank, client in enumerate(clients):
        push(client, want(client, [1, 10 + rank], [rank]), -1.0 - rank)
    rows = clients[0].wait(clients[0].pull(w := want(clients[0], [1, 10, 11, 12], [0, 1, 2]), 1))
    assert rows[0][w[0].inverse][:, 0].tolist() == [6, 1, 2, 3]
    assert rows[1][w[1].inverse][:, 0].tolist() == [1, 2, 3]
    assert server.taken == 1


def test_no_pull_is_answered_before_the_updates_that_it_needs(made_servers: Make) -> None:
    _, (fast, slow) = made_servers(2, 2)
    wanted, answered = want(fast, [1, 2, 3], [1]), threading.Event()
    for staleness in (0, 1, 2):
        for _ in range(staleness + 1):
            push(fast, wanted, -1.0)
        # Of these updates the other worker has sent none: so many may be missing, and no more.
        rows = fast.wait(fast.pull(wanted, fast.pushed - staleness - 1))
        pull, waited = fast.pull(wanted, fast.pushed - staleness), rows

        def wait(pull: Any = pull, box: list[Any] = (found := [])) -> None:
            box.append(fast.wait(pull))
            answered.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not answered.wait(0.2)
        for _ in range(staleness + 1):
            push(slow, want(slow, [1], []), 0.0)
        assert answered.wait(10)
        thread.join()
        answered.clear()
        assert found[0][0].min() >= waited[0].max() + 1


def test_who_is_missing_is_named(made_servers: Make) -> None:
    _, (client, _, third) = made_servers(1, 3, seconds=0.3)
    wanted = want(client, [1], [])
    push(client, wanted, 1.0)
    push(third, want(third, [1], []), 1.0)
    missing = r"rank 0 waited for rows from the server of rank 0 .* in vain for the gradients of "
    with pytest.raises(ConnectionError, match=missing + r"update 0 from rank 1"):
        client.wait(client.pull(wanted, 1))


def test_a_server_that_has_gone_is_named(made_servers: Make) -> None:
    servers, (client,) = made_servers(3, 1)
    servers[1].close()
    with pytest.raises(ConnectionError, match=r"rank 0 waited for .* the server of rank 1 in vain"):
        client.wait(client.pull(want(client, range(100), []), 0))


def test_a_server_that_does_not_answer_is_not_waited_for_longer_than_was_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = Server("127.0.0.1", silent.getsockname()[1], b"x" * 16)
        client = RowClient([where], 0, SHAPES, 0.2)
        pull = client.pull(want(client, [1], []), 0)
        with pytest.raises(ConnectionError, match=r"server of rank 0 for 0.2 s in vain"):
            client.wait(pull)
        client.close()
    with pytest.raises(ConnectionError, match=r"waited for a connection from the server of rank 0"):
        RowClient([where], 0, SHAPES, 0.2)


def test_whoever_has_no_token_is_told_nothing(made_servers: Make) -> None:
    (server,), _ = made_servers(1, 1)
    stranger = RowClient([Server(*server.address, b"x" * 16)], 0, SHAPES, 5)
    with pytest.raises(ConnectionError):
        stranger.wait(stranger.pull(want(stranger, [1], []), 0))
    stranger.close()


HEADER = struct.Struct("<4sHHqq")
BAD = {
    "another magic": HEADER.pack(b"HTTP", frames.PULL, 2, 0, 0),
    "an unknown kind": HEADER.pack(b"DTPS", 77, 2, 0, 0),
    "a negative length": HEADER.pack(b"DTPS", frames.PULL, 2, -1, 0),
    "a huge length": HEADER.pack(b"DTPS", frames.PULL, 2, 1 << 40, 0),
    "no counts": HEADER.pack(b"DTPS", frames.PULL, 2, 8, 0) + b"\0" * 8,
    "counts beyond the body": HEADER.pack(b"DTPS", frames.PULL, 2, 16, 0)
    + struct.pack("<qq", 9, 9),
    "a negative count": HEADER.pack(b"DTPS", frames.PULL, 2, 16, 0) + struct.pack("<qq", -1, 0),
    "ids left over": HEADER.pack(b"DTPS", frames.PULL, 2, 24, 0) + struct.pack("<qqq", 0, 0, 0),
    "a place outside": HEADER.pack(b"DTPS", frames.PULL, 2, 24, 0) + struct.pack("<qqq", 1, 0, 100),
    "a push of nothing": HEADER.pack(b"DTPS", frames.PUSH, 2, 0, 0),
    "a push without gradients": HEADER.pack(b"DTPS", frames.PUSH, 2, 32, 0)
    + struct.pack("<dqqq", 1.0, 1, 0, 5),
    "an update too early": HEADER.pack(b"DTPS", frames.PUSH, 2, 24, 3)
    + struct.pack("<dqq", 1.0, 0, 0),
    "an answer": HEADER.pack(b"DTPS", frames.ROWS, 2, 0, 0),
}


@pytest.mark.parametrize("what", BAD)
def test_a_frame_that_is_none_ends_its_connection_alone(made_servers: Make, what: str) -> None:
    (server,), (good,) = made_servers(1, 1)
    with socket.create_connection(server.address, timeout=5) as bad:
        frames.send(bad, frames.HELLO, 0, [server.token], len(SHAPES))
        bad.sendall(BAD[what])
        reader = frames.Reader(bad)
        told = reader.frame()
        assert told.kind == frames.ERROR
        assert len(reader.body(told.length)) > 10
        with pytest.raises(ConnectionError):
            reader.frame()
    assert good.wait(good.pull(want(good, [1], [0]), 0))[0].shape == (1, 4)


def test_ids_that_a_table_has_not_are_refused(made_servers: Make) -> None:
    _, (client,) = made_servers(1, 1)
    with pytest.raises(IndexError, match="found 3 to 100, allowed: 0 to 99"):
        want(client, [3, 100], [])


def test_rows_and_gradients_larger_than_sockets_hold_pass_each_other() -> None:
    count = 200_000
    spread = Spread(count, 1)
    shape = TableShape("t", count, 32, Start("constant"))
    server = RowServer([HeldRows(shape, spread, 0, RowSGD(), 0)], 1, seconds=30)
    client = RowClient([Server(*server.address, server.token)], 0, [shape], 30)
    try:
        wanted = [Wanted(np.arange(count), spread)]
        coming = client.pull(wanted, 0)
        client.push(wanted, [np.ones((count, 32), np.float32)], 0.1)
        assert client.wait(coming)[0].shape == (count, 32)
    finally:
        client.close()
        server.close()
