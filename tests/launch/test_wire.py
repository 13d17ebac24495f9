"""Messages of agents: who does not know the token, or changes a byte, is not heard."""

import json
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from drivetrain.launch import wire
from drivetrain.launch.wire import Greeting, Link, connect

SECONDS = 20.0


def when(connection: socket.socket) -> None:
    assert select.select([connection], [], [], SECONDS)[0]


def greeted(listener: socket.socket, token: bytes) -> Link:
    connection, _ = listener.accept()
    greeting = Greeting(connection, token)
    try:
        while True:
            when(connection)
            link = greeting.receive()
            if link is not None:
                return link
    except ConnectionError:
        connection.close()
        raise


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(SECONDS)
        yield made


@pytest.fixture
def meet(listener: socket.socket) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """``meet(ours, theirs)``: both links, or the errors that they ended with."""
    links: list[Link] = []

    def both(ours: bytes, theirs: bytes) -> tuple[Any, Any]:
        found: list[Any] = []

        def accept() -> None:
            try:
                found.append(greeted(listener, ours))
            except ConnectionError as error:
                found.append(error)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            agent: Any = connect(listener.getsockname(), theirs, SECONDS)
        except ConnectionError as error:
            agent = error
        thread.join()
        links.extend(link for link in (found[0], agent) if isinstance(link, Link))
        return found[0], agent

    yield both
    for link in links:
        link.close()


def heard(link: Link) -> list[dict[str, Any]]:
    when(link.connection)
    return link.receive()


def ending(link: Link) -> str:
    """Why a link ends."""
    try:
        while True:
            heard(link)
    except ConnectionError as error:
        return str(error)


def test_both_sides_hear_each_other_in_order(meet: Any) -> None:
    meeting, agent = meet(b"secret", b"secret")
    for number in range(3):
        agent.send({"number": number, "text": "ä" * 1000})
    found: list[Any] = []
    while len(found) < 3:
        found += heard(meeting)
    assert [message["number"] for message in found] == [0, 1, 2]
    meeting.send({"kind": "start"})
    assert heard(agent) == [{"kind": "start"}]
    assert agent.receive() == []
    meeting.close()
    assert "the other side closed the connection" in ending(agent)


def test_who_does_not_know_the_token_is_not_let_in(meet: Any) -> None:
    meeting, agent = meet(b"secret", b"guess")
    assert "does not know the token" in str(meeting)
    assert "is the token the same?" in str(agent)


def test_an_agent_does_not_believe_a_meeting_that_cannot_prove_itself(
    listener: socket.socket,
) -> None:
    def pretend() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(wire.MAGIC + bytes(32))
            connection.recv(64, socket.MSG_WAITALL)
            connection.sendall(bytes(32))

    thread = threading.Thread(target=pretend)
    thread.start()
    with pytest.raises(ConnectionError, match="does not know the token"):
        connect(listener.getsockname(), b"secret", SECONDS)
    thread.join()


def test_what_is_no_meeting_is_named(listener: socket.socket) -> None:
    def other() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(100))

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(ConnectionError, match="no meeting of agents"):
        connect(listener.getsockname(), b"", SECONDS)
    thread.join()


def frame(link: Link, text: bytes) -> bytes:
    proof = wire._proof(link._key, link._sends, link._sent.to_bytes(8, "little"), text)
    return wire._HEAD.pack(len(text), proof) + text


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (lambda good: good[:-1] + b"!", "not from who knows the token"),
        (lambda good: good + good, "not from who knows the token"),  # repeated
        (lambda good: struct.pack("<I", 1 << 30) + good[4:], "a message of 1073741824 bytes"),
    ],
)
def test_a_message_that_was_changed_or_repeated_ends_the_link(
    meet: Any, forge: Callable[[bytes], bytes], said: str
) -> None:
    meeting, agent = meet(b"", b"")
    agent.connection.sendall(forge(frame(agent, json.dumps({"kind": "beat"}).encode())))
    assert said in ending(meeting)


@pytest.mark.parametrize("text", [b"[1]", b"{", b"\xff", b"[" * 60000])
def test_what_is_no_json_object_ends_the_link(meet: Any, text: bytes) -> None:
    meeting, agent = meet(b"", b"")
    agent.connection.sendall(frame(agent, text))
    assert "no JSON object" in ending(meeting)
