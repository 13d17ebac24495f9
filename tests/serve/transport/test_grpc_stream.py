"""gRPC's streaming calls by hand: how far each side may be ahead of the other."""

import pytest
from http2_peer import CALL, HELLO, Peer, ending, goaways, of, resets, setting, wait, window

from drivetrain.serve.transport.frames import (
    CANCEL,
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    HEADERS,
    NO_ERROR,
    RST_STREAM,
    frame,
)
from drivetrain.serve.transport.grpc import GrpcStatus, framed
from drivetrain.serve.transport.grpc_stream import MESSAGES, GrpcStream
from drivetrain.serve.transport.hpack import encode


class Slow:
    """Takes messages and is through with none until it is told."""

    def __init__(self, peer: Peer) -> None:
        self.messages: list[bytes] = []
        self.ended = self.gone = 0
        self.stream: GrpcStream | None = None
        peer.http.streams = {b"/a": self._open}

    def _open(self, stream: GrpcStream) -> None:
        self.stream = stream
        stream.on_message = self.messages.append
        stream.on_end = lambda: setattr(self, "ended", self.ended + 1)
        stream.on_gone = lambda: setattr(self, "gone", self.gone + 1)


BEGIN = HELLO + frame(HEADERS, END_HEADERS, 1, encode(CALL))


def content(data: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, 1, data)


def test_an_application_gets_no_more_messages_than_it_can_hold(peer):
    client = peer()
    slow = Slow(client)
    client.send(BEGIN, content(framed(b"x") * 100, END_STREAM))
    assert len(slow.messages) == MESSAGES
    client.do(slow.stream.release)
    assert len(slow.messages) == MESSAGES + 1
    assert slow.ended == 0
    for _ in range(100 - 1):
        client.do(slow.stream.release)
    assert (len(slow.messages), slow.ended) == (100, 1)
    client.do(slow.stream.finish)
    assert ending(client, client.frames())[0] == GrpcStatus.OK


def test_what_waits_for_the_application_is_not_granted_anew(peer):
    client = peer()
    slow = Slow(client)
    message = framed(b"x" * 59_995)
    found = client.send(BEGIN, *[content(message)] * MESSAGES)
    granted = sum(int.from_bytes(data) for _, _, number, data in of(8, found) if number == 1)
    assert granted >= 500_000
    found = client.send(*[content(message)] * 9)
    assert not [one for one in of(8, found) if one[2] == 1]
    found = client.send(*[content(message)] * 9)
    assert resets(found) == [(1, FLOW_CONTROL_ERROR)]
    assert slow.gone == 1
    assert client.http.buffered == 0


def test_a_message_larger_than_the_window_is_granted(peer):
    client = peer()
    slow = Slow(client)
    message = framed(b"y" * (3 << 20))
    parts = [message[n : n + 50_000] for n in range(0, len(message), 50_000)]
    client.send(BEGIN)
    granted = 1 << 20
    for part in parts:
        granted -= len(part)
        assert granted >= 0
        found = client.send(content(part))
        granted += sum(int.from_bytes(data) for _, _, number, data in of(8, found) if number == 1)
    assert [len(one) for one in slow.messages] == [3 << 20]


def test_answers_that_are_not_taken_hold_the_messages_back(peer):
    client = peer()
    slow = Slow(client)
    client.send(BEGIN, setting(4, 0), content(framed(b"a")))
    assert slow.stream.send(b"x" * 500_000)
    rooms: list[int] = []
    slow.stream.on_room = lambda: rooms.append(1)
    assert not slow.stream.send(b"x" * 600_000)
    slow.stream.release()
    client.send(content(framed(b"b")))
    assert slow.messages == [b"a"]
    client.send(window(0, 1 << 30), window(1, 1 << 20))
    assert slow.messages == [b"a", b"b"]
    assert rooms == [1]


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"\0\0\0", GrpcStatus.INVALID_ARGUMENT, "a part of one"),
        (b"\0\0\x10\0\0", GrpcStatus.RESOURCE_EXHAUSTED, "found 1048576 bytes"),
        (b"\1" + framed(b"?")[1:], GrpcStatus.INVALID_ARGUMENT, "no grpc-encoding"),
    ],
)
def test_what_is_no_message_ends_the_stream(peer, data, status, message):
    client = peer(body_bytes=100_000)
    slow = Slow(client)
    code, words = ending(client, client.send(BEGIN, content(framed(b"a") + data, END_STREAM)))
    assert (code, slow.messages) == (status, [b"a"])
    assert message in words


def test_a_stream_that_is_finished_takes_what_still_comes(peer):
    client = peer()
    slow = Slow(client)
    client.send(BEGIN, setting(4, 3), content(framed(b"a")))
    slow.stream.send(b"b")
    slow.stream.finish()
    client.send(content(framed(b"late")))
    assert not slow.stream.send(b"late")
    found = client.send(window(1, 100))
    assert ending(client, found)[0] == GrpcStatus.OK
    assert resets(found) == [(1, NO_ERROR)]
    client.send(content(framed(b"later")))
    slow.stream.finish()
    assert (slow.messages, slow.gone) == ([b"a"], 0)
    assert client.http.buffered == 0


def test_what_is_sent_on_a_stream_that_is_gone_is_dropped(peer):
    client = peer()
    slow = Slow(client)
    client.send(BEGIN, content(framed(b"a")), frame(RST_STREAM, 0, 1, b"\0\0\0\x08"))
    assert slow.gone == 1
    assert not slow.stream.send(b"b")
    slow.stream.release()
    slow.stream.finish()
    assert client.do(client.frames) == []


def test_a_stream_whose_answers_nobody_takes_is_reset(peer, monkeypatch):
    monkeypatch.setattr("drivetrain.serve.transport.http2._WATCH_SECONDS", 0.01)
    client = peer(body_seconds=0.05)
    slow = Slow(client)
    client.send(BEGIN, setting(4, 0))
    client.do(lambda: slow.stream.send(b"b"))
    assert resets(wait(client, 0.15)) == [(1, CANCEL)]
    assert slow.gone == 1


def test_a_stream_may_be_silent_for_as_long_as_it_likes(peer, monkeypatch):
    monkeypatch.setattr("drivetrain.serve.transport.http2._WATCH_SECONDS", 0.01)
    client = peer(body_seconds=0.03, header_seconds=0.03)
    slow = Slow(client)
    client.send(BEGIN)
    found = wait(client, 0.15)
    assert resets(found) == goaways(found) == []
    assert slow.gone == 0


def test_a_drain_ends_a_stream_when_what_came_is_answered(peer):
    client = peer()
    slow = Slow(client)
    client.send(BEGIN, content(framed(b"a") + framed(b"b")))
    client.do(client.http.drain)
    client.do(client.connection.finalise)
    client.send(content(framed(b"late")))
    client.do(lambda: (slow.stream.send(b"A"), slow.stream.release()))
    assert slow.stream.open
    client.do(lambda: (slow.stream.send(b"B"), slow.stream.release()))
    found = client.frames()
    assert [data[5:] for *_, data in of(DATA, found)] == [b"A", b"B"]
    assert ending(client, found)[0] == GrpcStatus.UNAVAILABLE
    assert (slow.messages, slow.gone) == ([b"a", b"b"], 1)
    assert client.wire.ended


def test_a_drain_ends_a_silent_stream_at_once(peer):
    client = peer()
    slow = Slow(client)
    client.send(BEGIN)
    client.do(client.http.drain)
    client.do(client.connection.finalise)
    assert ending(client, client.frames())[0] == GrpcStatus.UNAVAILABLE
    assert slow.gone == 1


def test_one_that_sends_without_end_is_stopped_whatever_the_client_allows(peer):
    client = peer()
    slow = Slow(client)
    client.send(BEGIN, setting(4, (1 << 31) - 1), window(0, 1 << 30))
    rooms: list[int] = []
    slow.stream.on_room = lambda: rooms.append(1)

    def send() -> int:
        return next(n for n in range(1000) if not slow.stream.send(bytes(100_000)))

    assert client.do(send) < 30
    sent = sum(len(data) for *_, data in of(DATA, client.frames()))
    assert sent < 4 << 20
    client.do(client.connection.pause_writing)
    assert client.do(send) < 30
    client.do(client.connection.resume_writing)
    assert len(rooms) > 0


def test_who_takes_a_call_is_told_when_the_transport_ends_it_for_a_mistake(peer):
    client = peer()
    slow = Slow(client)
    found = client.send(BEGIN, content(framed(b"x")), content(b"\2\0\0\0\1x"))
    assert ending(client, found)[0] == GrpcStatus.INVALID_ARGUMENT
    assert slow.gone == 1
