"""gRPC: calls by grpcio's own client over a socket, and messages that no client would make."""

import asyncio
import contextlib
import gzip
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
import pytest
from http2_peer import CALL, HELLO, Peer, ending, of, setting, window

from drivetrain.serve.transport.exchange import Exchange
from drivetrain.serve.transport.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    frame,
)
from drivetrain.serve.transport.grpc import GrpcExchange, GrpcStatus, framed, of_http, trailers
from drivetrain.serve.transport.grpc_stream import GrpcStream
from drivetrain.serve.transport.hpack import Decoder, encode
from drivetrain.serve.transport.http import Http, HttpLimits
from drivetrain.serve.transport.opening import Opening

LARGE = [("grpc.max_receive_message_length", -1)]


@dataclass
class Service:
    """What answers the calls of these tests, by the method's name."""

    asked: list[GrpcExchange] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    waiting: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)

    def __call__(self, exchange: Exchange) -> None:
        assert isinstance(exchange, GrpcExchange)
        self.asked.append(exchange)
        name = exchange.target.rpartition(b"/")[2].decode()
        if name == "Echo":
            exchange.respond(200, bytes(exchange.body), extra=b"X-Request-Id: back\r\n")
        elif name == "Fail":
            exchange.fail(int(exchange.body), '100 % of „β"\n')
        elif name == "Wait":
            exchange.on_gone = lambda: (self.gone.append("Wait"), self.left.set())
            self.waiting.set()
        else:
            exchange.refuse(exchange.missing, f"no method {name}")

    def echo(self, stream: GrpcStream) -> None:
        stream.on_message = lambda message: (stream.send(message), stream.release())
        stream.on_end = lambda: stream.finish(extra=b"X-Request-Id: end\r\n")
        stream.on_gone = lambda: (self.gone.append("Chat"), self.left.set())

    def count(self, stream: GrpcStream) -> None:
        """As many messages as the first one says, as fast as there is room."""
        left = 0

        def go(message: bytes = b"") -> None:
            nonlocal left
            if message:
                left = int(message)
                stream.release()
            while left:
                left -= 1
                if not stream.send(b"%07d" % left * 1000):
                    break
            if not left:
                stream.finish()

        stream.on_message, stream.on_room = go, go

    def reject(self, stream: GrpcStream) -> None:
        stream.finish(GrpcStatus.UNAUTHENTICATED, "found no token")

    def broken(self, stream: GrpcStream) -> None:
        def fail(message: bytes) -> None:
            raise RuntimeError("by the test")

        stream.on_message = fail

    @property
    def streams(self) -> dict[bytes, Callable[[GrpcStream], None]]:
        return {
            b"/t.T/Chat": self.echo,
            b"/t.T/Count": self.count,
            b"/t.T/Reject": self.reject,
            b"/t.T/Broken": self.broken,
        }


@dataclass
class Running:
    """A server on a socket."""

    service: Service
    http: Http
    port: int

    def channel(self, *options: tuple[str, int]) -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{self.port}", options=[*LARGE, *options])


async def _listen(http: Http, started: Future[tuple[int, Callable[[], None]]]) -> None:
    """Serve until told to stop."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    async with await loop.create_server(lambda: Opening(http), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        started.set_result((port, lambda: loop.call_soon_threadsafe(stop.set)))
        while not stop.is_set():
            http.tick()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.05)
        http.abort()
        await asyncio.sleep(0.01)


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """Starts servers, each on a thread of its own."""
    with ExitStack() as stack:

        def start(**limits: Any) -> Running:
            service = Service()
            http = Http(service, HttpLimits(**limits), streams=service.streams)
            started: Future[tuple[int, Callable[[], None]]] = Future()
            thread = threading.Thread(target=lambda: asyncio.run(_listen(http, started)))
            thread.start()
            stack.callback(thread.join)
            port, stop = started.result(10)
            stack.callback(stop)
            return Running(service, http, port)

        yield start


@pytest.fixture
def running(serve: Callable[..., Running]) -> Running:
    return serve()


def same(message: bytes) -> bytes:
    return message


def unary(channel: grpc.Channel, name: str = "Echo") -> Any:
    return channel.unary_unary(f"/t.T/{name}", same, same)


def chat(channel: grpc.Channel, name: str = "Chat") -> Any:
    return channel.stream_stream(f"/t.T/{name}", same, same)


# -- unary calls -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 300, 70_000, 3 << 20])
def test_messages_of_any_size_come_back(running, size):
    message = bytes(range(256)) * (size // 256 + 1)
    with running.channel() as channel:
        assert unary(channel)(message[:size], timeout=20) == message[:size]


@pytest.mark.parametrize("coding", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_read(running, coding):
    with running.channel() as channel:
        assert unary(channel)(b"z" * 10_000, compression=coding, timeout=5) == b"z" * 10_000


def test_metadata_go_both_ways(running):
    with running.channel() as channel:
        metadata = [("x-request-id", "7"), ("authorization", "Bearer t"), ("other-bin", b"\0\1")]
        _, call = unary(channel).with_call(b"a", metadata=metadata, timeout=5)
        assert dict(call.initial_metadata())["x-request-id"] == "back"
    headers = running.service.asked[0].headers
    assert (headers[b"x-request-id"], headers[b"authorization"]) == (b"7", b"Bearer t")


def test_many_calls_at_once_are_each_answered(running):
    with running.channel() as channel, ThreadPoolExecutor(16) as pool:
        call = unary(channel)
        messages = [b"%d" % n for n in range(500)]
        assert list(pool.map(lambda message: call(message, timeout=20), messages)) == messages


def test_more_calls_than_streams_wait_and_are_answered(serve):
    async def ask(port: int) -> list[bytes]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/t.T/Echo")
            return await asyncio.gather(*(call(b"%d" % n, timeout=20) for n in range(300)))

    running = serve(streams=4)
    assert asyncio.run(ask(running.port)) == [b"%d" % n for n in range(300)]


def test_a_failure_has_its_status_and_its_words(running):
    with running.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Fail")(b"9", timeout=5)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == '100 % of „β"\n'


def test_an_unknown_method_is_unimplemented(running):
    with running.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        unary(channel, "None")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == "no method None"


def test_a_message_too_long_is_refused_before_it_is_read(serve):
    running = serve(body_bytes=1000)
    with running.channel() as channel:
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel)(b"x" * (20 << 20), timeout=5)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "allowed: 1000" in caught.value.details()
        assert unary(channel)(b"x" * 1000, timeout=5) == b"x" * 1000
    assert running.http.buffered == 0


def test_a_deadline_reaches_the_application_and_its_end_too(running):
    before = time.monotonic()
    with running.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Wait")(b"", timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert before < running.service.asked[0].deadline < before + 5
    assert running.service.left.wait(5)


def test_without_a_time_out_there_is_no_deadline(running):
    with running.channel() as channel:
        unary(channel)(b"")
    assert running.service.asked[0].deadline is None


def test_a_call_that_is_cancelled_is_gone(running):
    with running.channel() as channel:
        call = unary(channel, "Wait").future(b"")
        assert running.service.waiting.wait(5)
        call.cancel()
        assert running.service.left.wait(5)
        assert unary(channel)(b"on", timeout=5) == b"on"
    assert running.service.gone == ["Wait"]


# -- streaming calls -------------------------------------------------------------------------------


def test_a_chat_goes_both_ways_in_order(running):
    messages = [b"%d" % n * (n % 50) for n in range(2000)]
    with running.channel() as channel:
        call = chat(channel)(iter(messages), timeout=20)
        assert list(call) == messages
        assert dict(call.trailing_metadata())["x-request-id"] == "end"


def test_a_chat_answers_before_its_end(running):
    turns: list[bytes] = []
    more = threading.Semaphore(1)

    def talk() -> Iterator[bytes]:
        for n in range(5):
            more.acquire(timeout=5)
            yield b"%d" % n

    with running.channel() as channel:
        for answer in chat(channel)(talk(), timeout=20):
            turns.append(answer)
            more.release()
    assert turns == [b"%d" % n for n in range(5)]


def test_large_and_compressed_messages_stream(running):
    messages = [bytes([n]) * (1 << 20) for n in range(8)]
    with running.channel() as channel:
        for coding in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            assert list(chat(channel)(iter(messages), compression=coding, timeout=30)) == messages


def test_a_slow_reader_holds_the_sender_back(running):
    with running.channel() as channel:
        call = chat(channel, "Count")(iter([b"2000"]), timeout=60)
        first = next(call)
        time.sleep(0.2)
        rest = list(call)
    assert [first[:7], *[message[:7] for message in rest]] == [
        b"%07d" % n for n in range(1999, -1, -1)
    ]


def test_a_stream_may_be_refused_at_once(running):
    with running.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        list(chat(channel, "Reject")(iter([b"a"]), timeout=5))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_stream_whose_application_fails_ends_alone(running, caplog):
    with running.channel() as channel:
        with pytest.raises(grpc.RpcError) as caught:
            list(chat(channel, "Broken")(iter([b"a"]), timeout=5))
        assert list(chat(channel)(iter([b"a"]), timeout=5)) == [b"a"]
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "by the test" in caplog.text


def test_a_stream_that_is_cancelled_is_gone(running):
    with running.channel() as channel:
        call = chat(channel)(itertools.chain([b"a"], iter(lambda: time.sleep(0.05) or b"b", None)))
        assert next(call) == b"a"
        call.cancel()
        assert running.service.left.wait(5)


def test_a_stream_past_its_deadline_ends(running):
    stop = threading.Event()
    with running.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        list(chat(channel)(iter(lambda: stop.wait(1) or b"a", None), timeout=0.3))
    stop.set()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert running.service.left.wait(5)


# -- by hand ---------------------------------------------------------------------------------------


def call(peer: Peer, content: bytes, *more: tuple[bytes, bytes]) -> tuple[int, str]:
    """How a unary call with this content ends."""
    head = frame(HEADERS, END_HEADERS, 1, encode([*CALL, *more]))
    return ending(peer, peer.send(HELLO, head, frame(DATA, END_STREAM, 1, content)))


GZIP = (b"grpc-encoding", b"gzip")
PACKED = gzip.compress(b"message", mtime=0)


def packed(data: bytes) -> bytes:
    return b"\1" + framed(data)[1:]


@pytest.mark.parametrize(
    ("content", "more", "status", "message"),
    [
        (b"", (), GrpcStatus.INVALID_ARGUMENT, "found none"),
        (b"\0\0\0", (), GrpcStatus.INVALID_ARGUMENT, "a part of one"),
        (framed(b"abc")[:-1], (), GrpcStatus.INVALID_ARGUMENT, "a part of one"),
        (framed(b"abc") * 2, (), GrpcStatus.INVALID_ARGUMENT, "more than one"),
        (b"\0\0\x10\0\0abc", (), GrpcStatus.RESOURCE_EXHAUSTED, "found 1048576 bytes"),
        (packed(PACKED), (), GrpcStatus.INVALID_ARGUMENT, "no grpc-encoding"),
        (b"\2" + framed(b"")[1:], (), GrpcStatus.INVALID_ARGUMENT, "flag 2"),
        (packed(PACKED), ((b"grpc-encoding", b"br"),), GrpcStatus.UNIMPLEMENTED, "found 'br'"),
        (packed(PACKED[:-3]), (GZIP,), GrpcStatus.INVALID_ARGUMENT, "no whole gzip"),
        (packed(PACKED + b"x"), (GZIP,), GrpcStatus.INVALID_ARGUMENT, "no whole gzip"),
        (packed(b"message"), (GZIP,), GrpcStatus.INVALID_ARGUMENT, "damaged gzip"),
        (
            packed(gzip.compress(bytes(1 << 20), mtime=0)),
            (GZIP,),
            GrpcStatus.RESOURCE_EXHAUSTED,
            "allowed",
        ),
        (framed(b"a"), ((b"grpc-timeout", b"5s"),), GrpcStatus.INVALID_ARGUMENT, "grpc-timeout"),
        (framed(b"a"), ((b"x-request-id", b"a"),) * 2, GrpcStatus.INVALID_ARGUMENT, "found twice"),
    ],
)
def test_what_is_no_call_is_told_so(peer, content, more, status, message):
    client = peer(lambda exchange: exchange.respond(200), body_bytes=100_000)
    code, words = call(client, content, *more)
    assert code == status
    assert message in words
    assert client.asked == []
    assert 400 <= client.refusals[0] < 500


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"99999999n", 0.1)],
)
def test_a_time_out_has_its_unit(peer, value, seconds):
    client = peer(lambda exchange: exchange.respond(200))
    before = time.monotonic()
    assert call(client, framed(b""), (b"grpc-timeout", value))[0] == GrpcStatus.OK
    assert client.asked[0].deadline - seconds == pytest.approx(before, abs=1)


@pytest.mark.parametrize(
    ("http", "status"),
    {
        400: 3,
        401: 16,
        404: 5,
        409: 9,
        412: 9,
        413: 8,
        429: 14,
        500: 13,
        501: 12,
        503: 14,
        504: 4,
        418: 2,
    }.items(),
)
def test_a_status_of_http_has_one_of_grpc(http, status):
    assert of_http(http) == status


def test_a_refusal_says_when_to_try_again(peer):
    client = peer(lambda exchange: exchange.refuse(503, "full", b"Retry-After: 1\r\n"))
    found = client.send(
        HELLO, frame(HEADERS, END_HEADERS, 1, encode(CALL)), frame(DATA, END_STREAM, 1, framed(b""))
    )
    *_, last = client.fields(found)
    assert last[b"grpc-status"] == b"14"
    assert last[b"grpc-retry-pushback-ms"] == b"1000"
    assert len(of(HEADERS, found)) == 1


def test_a_long_message_of_an_error_is_cut():
    for letter in "aβ語🙂":
        block = trailers(GrpcStatus.INTERNAL, letter * 10_000)
        fields = dict(Decoder().decode(block) or [])
        assert 600 <= len(fields[b"grpc-message"]) <= 2048
        assert set(unquote(fields[b"grpc-message"].decode(), errors="strict")) == {letter}


def test_answers_beyond_the_window_end_with_their_status(peer):
    client = peer(lambda exchange: exchange.respond(200, b"x" * 1000))
    head = frame(HEADERS, END_HEADERS, 1, encode(CALL)) + frame(DATA, END_STREAM, 1, framed(b""))
    found = client.send(HELLO, setting(4, 100), head)
    assert len(of(HEADERS, found)) == 1
    found = client.send(window(1, 10_000))
    assert [kind for kind, *_ in found] == [DATA, HEADERS]
    assert ending(client, found) == (GrpcStatus.OK, "")
