"""Listeners: ports that are taken, handshakes at an end, connections among several sockets."""

import contextlib
import os
import signal
import socket
import sys
import time

import pytest

from drivetrain.serve.transport.listen import (
    bind,
    bind_shared,
    hold_off,
    let_in,
    silence,
    steer,
    take,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="socket filters are Linux'")
HOSTS = ["127.0.0.1", "::1"]


@pytest.fixture
def shared():
    with contextlib.ExitStack() as stack:

        def make(host, count):
            return [stack.enter_context(each) for each in bind_shared(host, 0, count)]

        yield make


def connect(address, count):
    return [socket.create_connection(address[:2], timeout=5) for _ in range(count)]


def close(connections):
    for connection in connections:
        connection.close()


def test_a_port_that_is_taken_is_named_with_what_to_do():
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}: .*in use.*take another port"):
            bind("127.0.0.1", port)


@linux
def test_a_silenced_listener_gives_what_had_connected_and_the_others_take_the_rest():
    one, two = bind_shared("127.0.0.1", 0, 2)
    two.listen(64)
    with one, two:
        address = two.getsockname()
        first = [socket.create_connection(address) for _ in range(16)]
        taken = silence(two)
        more = [socket.create_connection(address) for _ in range(8)]
        rest = silence(one)
        assert len(taken) + len(rest) == 24
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        for connection in (*first, *more, *taken, *rest):
            connection.close()


@linux
def test_a_listener_that_was_silenced_twice_serves_when_it_listens_again():
    with bind("127.0.0.1", 0) as listener:
        listener.listen(8)
        assert silence(listener) == silence(listener) == []
        listener.listen(8)
        (client,) = connect(listener.getsockname(), 1)
        (served,) = take(listener)
        client.sendall(b"ask")
        assert served.recv(8) == b"ask"
        served.sendall(b"tell")
        assert client.recv(8) == b"tell"
        close([client, served])


@linux
@pytest.mark.parametrize("host", HOSTS)
def test_a_listener_that_holds_off_takes_no_new_client_until_it_lets_in_again(host):
    with bind(host, 0) as listener:
        listener.listen(64)
        address = listener.getsockname()[:2]
        before = connect(address, 4)
        assert hold_off(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(address, timeout=0.1)
        taken = take(listener)
        assert len(taken) == 4
        taken[0].sendall(b"still here")  # what is connected goes on
        assert before[0].recv(64) == b"still here"
        let_in(listener)
        after = connect(address, 2)
        taken += take(listener)
        assert len(taken) == 6
        close([*before, *taken, *after])


@linux
@pytest.mark.parametrize("host", HOSTS)
def test_new_connections_go_only_where_they_are_steered_and_in_the_end_to_all(host, shared):
    listeners = shared(host, 4)
    address = listeners[0].getsockname()

    def spread():
        clients = connect(address, 60)
        found = [take(listener) for listener in listeners]
        close([*clients, *(each for taken in found for each in taken)])
        return [len(taken) for taken in found]

    for places in ([2], [0, 3], [1, 2, 3]):
        assert steer(listeners[1], places)
        found = spread()
        assert sum(found) == 60
        assert {place for place, count in enumerate(found) if count} == set(places)
    assert steer(listeners[0], [])
    assert all(spread())


@linux
def test_what_connects_to_a_seat_that_others_are_steered_past_waits_for_its_next_owner(shared):
    one, two = shared("127.0.0.1", 2)
    steer(one, [1])
    waiting = connect(one.getsockname(), 3)
    steer(one, [0])
    more = connect(one.getsockname(), 3)
    with two.dup() as owner:
        late = take(owner)
    soon = take(one)
    assert (len(late), len(soon)) == (3, 3)
    close([*waiting, *more, *late, *soon])


@linux
def test_a_platform_that_knows_no_filters_is_told_apart(monkeypatch):
    with bind("127.0.0.1", 0) as listener:
        monkeypatch.setattr(sys, "platform", "darwin")
        assert not hold_off(listener)
        assert not steer(listener, [0])
        let_in(listener)


CLIENTS = 3


def _visit(address, told):
    """Connect again and again in a process of its own; tells of connections that were reset."""
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    good = lost = 0
    while not ended:
        with socket.socket() as client:
            client.settimeout(0.05)  # rather than the second until a dropped packet is sent again
            try:
                client.connect(address)
            except OSError:
                time.sleep(0.0005)
                continue
            client.settimeout(5)
            try:
                client.sendall(b"a")
                answered = client.recv(1) == b"b"
            except OSError:
                answered = False
            good += answered
            lost += not answered
    os.write(told, b"%d %d" % (good, lost))


def _answer(connections):
    for connection in connections:
        connection.setblocking(True)
        with connection, contextlib.suppress(OSError):
            connection.recv(1)
            connection.sendall(b"b")


def _end_while_visited(rounds):
    """Listen and end again and again; gives the visits that were answered and lost."""
    reads, writes = os.pipe()
    with bind("127.0.0.1", 0) as claim:
        address = claim.getsockname()
    visitors = []
    for _ in range(CLIENTS):
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                _visit(address, writes)
            os._exit(0)
        visitors.append(pid)
    for _ in range(rounds):
        with bind(*address) as listener:
            listener.listen(64)
            for held in (False, True):
                if held:
                    assert hold_off(listener)
                until = time.monotonic() + 0.01
                while time.monotonic() < until:
                    _answer(take(listener))
                    time.sleep(0.0002)
            _answer(silence(listener))
    found = []
    for pid in visitors:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        found.append([int(word) for word in os.read(reads, 64).split()])
    os.close(reads)
    os.close(writes)
    return [sum(each) for each in zip(*found, strict=True)]


@linux
@pytest.mark.slow
def test_nothing_that_connected_is_reset_when_a_listener_ends_that_was_held_off():
    good, lost = _end_while_visited(rounds=100)
    assert lost == 0
    assert good > 100
