"""Any bytes into an HTTP/2 connection, in any pieces: what it must do, held by a fuzzer.

Run it as ``python tests/fuzz/http2.py -max_total_time=20``; every option is libFuzzer's. An input
that breaks a rule is written to the present directory, and given back as an argument it is run
again alone.
"""

import asyncio
import random
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "serve"))

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hpack
from fuzzing import cut, fuzz, methods
from wire import Wire

from drivetrain.serve.transport import frame_reader, head, http2_control, http2_request, streams
from drivetrain.serve.transport import hpack as ours
from drivetrain.serve.transport.exchange import Exchange
from drivetrain.serve.transport.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEAD,
    HEADERS,
    INTERNAL_ERROR,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
    PRIORITIZED,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from drivetrain.serve.transport.grpc import framed
from drivetrain.serve.transport.grpc_stream import GrpcStream
from drivetrain.serve.transport.hpack import encode
from drivetrain.serve.transport.http import Http, HttpLimits
from drivetrain.serve.transport.http2 import Connection

LIMITS = {"body_bytes": 200, "buffered_bytes": 500, "header_bytes": 400, "streams": 4}
PLAN_BYTES = 4
"""The first bytes of an input say how the rest is fed: see :class:`Plan`."""
END = END_HEADERS | END_STREAM

POST = encode([(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a"), (b"x", b"y")])
GET = encode([(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b"host", b"x")])
CALL = POST + encode([(b"content-type", b"application/grpc"), (b"te", b"trailers")])
STREAM = CALL.replace(b"/a", b"/s")
STORED = b"\x83\x86\x84\x40\x01a\x01b"
SEEDS = (
    frame(HEADERS, END, 1, GET) + frame(HEADERS, END, 3, GET),
    frame(HEADERS, END_HEADERS, 1, POST) + frame(DATA, END_STREAM, 1, b"hello"),
    frame(HEADERS, END_HEADERS, 1, POST) + frame(DATA, 0, 1, b"hel") + frame(DATA, 1, 1, b"lo"),
    frame(HEADERS, END_HEADERS, 1, CALL) + frame(DATA, END_STREAM, 1, framed(b"hello")),
    frame(HEADERS, END_HEADERS, 1, STREAM)
    + frame(DATA, 0, 1, framed(b"hello") * 3)
    + frame(DATA, END_STREAM, 1, framed(b"hello")),
    frame(HEADERS, 0, 1, GET[:4]) + frame(CONTINUATION, END_HEADERS, 1, GET[4:]),
    frame(HEADERS, END | PADDED | PRIORITIZED, 1, b"\2\0\0\0\0\7" + GET + b"\0\0"),
    frame(HEADERS, END, 1, STORED) + frame(HEADERS, END, 3, b"\x83\x86\x84\xbe") * 2,
    frame(HEADERS, END_HEADERS, 1, POST) + frame(HEADERS, END, 1, encode([(b"a", b"b")])),
    frame(HEADERS, END_HEADERS, 1, POST) + frame(RST_STREAM, 0, 1, b"\0\0\0\x08"),
    frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 3)) + frame(HEADERS, END, 1, GET)
    + frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\7") + frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 90)),
    frame(SETTINGS, 0, 0, struct.pack(">HL", 1, 0)) + frame(HEADERS, END, 1, GET),
    frame(PING, 0, 0, b"12345678") + frame(PRIORITY, 0, 1, b"\0\0\0\0\1") + frame(99, 3, 1, b"?"),
    frame(GOAWAY, 0, 0, bytes(8)) + frame(HEADERS, END, 1, GET),
    frame(HEADERS, END_HEADERS, 1, POST + encode([(b"content-length", b"5")]))
    + frame(DATA, PADDED | END_STREAM, 1, b"\1hello\0"),
    frame(HEADERS, END_HEADERS, 1, POST) + frame(DATA, 0, 1, b"x" * 300) + frame(DATA, 1, 1, b"x"),
    frame(HEADERS, END, 1, encode([(b"a", b"b" * 500)])),
    frame(HEADERS, END_HEADERS, 1, POST) * 2,
    b"".join(frame(HEADERS, END_HEADERS, n, POST) for n in range(1, 13, 2)),
    frame(HEADERS, END_HEADERS, 1, POST + encode([(b"expect", b"100-continue")]))
    + frame(DATA, END_STREAM, 1, b"ok"),
)  # fmt: skip
WORDS = (
    *(frame(kind, flags, 1)[3:] for kind in range(10) for flags in (0, 1, 4, 5, 8)),
    *(encode([pair]) for pair in ((b":path", b"/"), (b"te", b"x"), (b"content-length", b"5"))),
    *(frame(WINDOW_UPDATE, 0, n, b"\x7f\xff\xff\xff") for n in (0, 1)),
    *(b"\x83", b"\x86", b"\x84", b"\xbe", b"\x20", b"\x3f\xe1\x1f", b"\x40\x01a\x01b"),
)


@dataclass(frozen=True)
class Plan:
    """How an input's bytes reach the connection, read from its first four bytes.

    Attributes:
        seed: of the places where it is cut and of the turns at which is answered.
        whole: it comes in one piece.
        late: answers wait for a later turn; else each comes within the call.
        raw: no preface goes before the bytes.
        ends: the client closes its side behind the bytes.
        lost: the connection is lost behind the bytes, before what waits is answered.
        drains: the server begins to end when half of the bytes are there.
        size: what an answer has in bytes, beside the number of its request.
    """

    seed: int
    whole: bool = False
    late: bool = False
    raw: bool = False
    ends: bool = False
    lost: bool = False
    drains: bool = False
    size: int = 0

    @classmethod
    def of(cls, data: bytes) -> "Plan":
        flags = data[2] if len(data) > 2 else 0
        bits = [bool(flags >> bit & 1) for bit in range(6)]
        size = (0, 0, 90, 100_000)[data[3] % 4] if len(data) > 3 else 0
        return cls(int.from_bytes(data[:2]), *bits, size)


@dataclass(frozen=True)
class Taken:
    """A request of plain HTTP/2 as a parser took it."""

    method: bytes
    target: bytes
    body: bytes


@dataclass
class Server:
    """A connection, the application behind it, and what both did."""

    plan: Plan
    taken: dict[int, Taken] = field(default_factory=dict)
    waiting: list[Exchange] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    messages: int = 0

    def __post_init__(self) -> None:
        self.http = Http(
            self._asked,
            HttpLimits(**LIMITS),
            lambda status, *_: self.refusals.append(status),
            {b"/s": self._opened},
        )
        self.connection, self.wire = Connection(self.http), Wire()
        self.connection.connection_made(self.wire)

    def _asked(self, exchange: Any) -> None:
        body = bytes(exchange.body)
        assert len(body) <= LIMITS["body_bytes"], "a body is no longer than its limit"
        if isinstance(exchange, http2_request.Http2Exchange):
            number = exchange._stream.number
            assert number not in self.taken, "a stream has one request"
            self.taken[number] = Taken(exchange.method, exchange.target, body)
        self.waiting.append(exchange)
        if not self.plan.late:
            self.answer()

    def _opened(self, stream: GrpcStream) -> None:
        def take(message: bytes) -> None:
            self.messages += 1
            stream.send(message * (1 + self.plan.size // 100))
            stream.release()

        stream.on_message = take
        stream.on_end = stream.finish

    def answer(self) -> None:
        exchange = self.waiting.pop(0)
        exchange.respond(200, bytes(exchange.body) + b"x" * self.plan.size)

    async def feed(self, stream: bytes) -> None:
        """All of the bytes, as long as the connection reads them, and then their end."""
        if not self.plan.raw:
            stream = PREFACE + frame(SETTINGS, 0, 0) + stream
        chance = random.Random(self.plan.seed)
        pieces = cut(stream, self.plan.whole, chance)
        for number, piece in enumerate(pieces):
            if self.plan.drains and number == len(pieces) // 2:
                self.http.drain()
            if self.wire.closing:
                break
            if piece:
                self.connection.data_received(piece)
            allowed = LIMITS["buffered_bytes"] + len(piece)
            assert 0 <= self.http.buffered <= allowed, "bodies are held within their limit"
            assert len(self.connection.streams) <= LIMITS["streams"], "streams are within theirs"
            while self.waiting and chance.random() < 0.3:
                self.answer()
            await asyncio.sleep(0)
        await self._end()

    async def _end(self) -> None:
        if self.plan.ends and not self.wire.closing and not self.connection.eof_received():
            self.wire.close()
        if self.plan.lost:
            self.wire.closing = True
            self.connection.connection_lost(None)
        while self.waiting:
            self.answer()
        await asyncio.sleep(0)
        self.connection.expire()
        await asyncio.sleep(0)
        if not self.plan.lost:
            self.connection.connection_lost(None)
        assert not self.connection.streams, "what is lost has no streams"
        assert not self.connection.blocked, "nothing waits for what is lost"
        assert self.http.buffered == 0, "what is answered or gone is held no longer"
        assert not self.http.connections, "what is lost is forgotten"


@dataclass
class Answers:
    """What a server wrote, read by a decoder that is not ours; every rule of a server is held."""

    statuses: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    reset: dict[int, int] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)
    content: int = 0

    def read(self, data: bytes, most: int) -> None:
        decoder = hpack.Decoder()
        while data:
            high, low, kind, flags, number = HEAD.unpack_from(data)
            size = high << 16 | low
            assert len(data) >= 9 + size, "a frame is whole"
            assert size <= most, "a frame is no longer than the client takes"
            payload, data = data[9 : 9 + size], data[9 + size :]
            if kind == HEADERS:
                self._headers(number, flags, dict(decoder.decode(payload, raw=True)))
            elif kind == DATA:
                self._still_open(number)
                assert self.statuses.get(number, 0) >= 200, "content follows its headers"
                self.content += size
                self._end(number, flags)
            elif kind == RST_STREAM:
                code = int.from_bytes(payload)
                assert number not in self.reset, "a stream is reset once"
                assert number not in self.ended or code == NO_ERROR, "what ended is not reset"
                self.reset[number] = code
            elif kind == GOAWAY:
                self.codes.append(struct.unpack_from(">LL", payload)[1])
            else:
                assert kind in (SETTINGS, PING, WINDOW_UPDATE), "a server sends nothing else"

    def _headers(self, number: int, flags: int, fields: dict[bytes, bytes]) -> None:
        self._still_open(number)
        assert flags & END_HEADERS
        if self.statuses.get(number, 0) >= 200:
            assert b"grpc-status" in fields, "what follows the content is how the call ended"
            assert flags & END_STREAM, "trailers are the end"
        else:
            self.statuses[number] = int(fields[b":status"])
        self._end(number, flags)

    def _still_open(self, number: int) -> None:
        assert number & 1, "an answer is on a client's stream"
        assert number not in self.ended, "nothing follows the end of a stream"
        assert number not in self.reset, "nothing follows a reset"

    def _end(self, number: int, flags: int) -> None:
        if flags & END_STREAM:
            self.ended.add(number)


def run(plan: Plan, stream: bytes) -> tuple[Server, Answers]:
    """What a server does with a stream."""
    server: list[Server] = []

    async def feed() -> None:
        server.append(Server(plan))
        await server[0].feed(stream)

    LOOP.run_until_complete(feed())
    found = Answers()
    # A client may raise what it takes in the stream itself.
    found.read(server[0].wire.data, max(1 << 14, len(stream) and (1 << 24) - 1))
    return server[0], found


LOOP = asyncio.new_event_loop()


def check(data: bytes) -> None:
    """Hold the connection to its rules for one input.

    Raises:
        AssertionError: a rule is broken.
    """
    plan, stream = Plan.of(data), data[PLAN_BYTES:]
    server, found = run(plan, stream)
    assert 500 not in found.statuses.values(), "no bytes make the server fail"
    assert INTERNAL_ERROR not in found.codes, "no bytes make the server fail"
    assert sum(code != NO_ERROR for code in found.codes) <= 1, "a connection fails once"
    assert found.content <= allowance(plan, stream), "content stays within the client's window"
    if not (plan.late or plan.lost):
        assert server.taken.keys() <= found.statuses.keys(), "every request is answered"
    if not (plan.drains or plan.late or plan.raw):
        compare(server.taken, found, stream)
        one, _ = run(replace(plan, whole=True), stream)
        assert one.taken == server.taken, "where the bytes are cut makes no difference"
        assert one.messages == server.messages, "where the bytes are cut makes no difference"


def allowance(plan: Plan, stream: bytes) -> int:
    """The most that a client which sent this can have allowed on the connection."""
    allowed, pos = (1 << 16) - 1, 24 if plan.raw else 0
    while len(stream) - pos >= 9:
        high, low, kind, _, number = HEAD.unpack_from(stream, pos)
        if kind == WINDOW_UPDATE and not number & 0x7FFFFFFF:
            allowed += int.from_bytes(stream[pos + 9 : pos + 13]) & 0x7FFFFFFF
        pos += 9 + (high << 16 | low)
    return allowed


def compare(taken: dict[int, Taken], found: Answers, stream: bytes) -> None:
    """What was taken is what the library h2 takes, which shares no line: nothing is smuggled."""
    theirs, failed = reference(stream)
    for number, request in taken.items():
        if number in theirs:
            assert request == theirs[number], f"{number}: {request}, for h2 {theirs[number]}"
        else:
            assert failed, f"{number}: {request}, which h2 does not see"
    for number, request in theirs.items():
        refused = found.statuses.get(number, 200) != 200 or number in found.reset
        call = number in found.ended and number not in taken  # of gRPC, which h2 does not tell
        assert number in taken or refused or call or found.codes, f"{number}: {request} was lost"


def reference(stream: bytes) -> tuple[dict[int, Taken], bool]:
    """The requests that h2 takes out of a stream, and whether it then met an error."""
    config = h2.config.H2Configuration(client_side=False, header_encoding=None)
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    heads: dict[int, dict[bytes, bytes]] = {}
    bodies: dict[int, bytes] = {}
    found: dict[int, Taken] = {}
    try:
        for event in connection.receive_data(PREFACE + frame(SETTINGS, 0, 0) + stream):
            if isinstance(event, h2.events.RequestReceived):
                heads[event.stream_id], bodies[event.stream_id] = dict(event.headers), b""
            elif isinstance(event, h2.events.DataReceived):
                bodies[event.stream_id] += event.data
            elif isinstance(event, h2.events.StreamEnded):
                number = event.stream_id
                fields = heads[number]
                target = fields.get(b":path", b"*")
                found[number] = Taken(fields[b":method"], target, bodies[number])
    except h2.exceptions.ProtocolError:
        return found, True
    return found, False


def inputs(stream: bytes) -> list[bytes]:
    """Inputs of the fuzzer for a stream, by the plans that differ most."""
    kinds = [(1, 0), (0, 0), (2, 2), (8, 0), (18, 1), (32, 3), (1, 3)]
    return [bytes((n, 7, flags, size)) + stream for n, (flags, size) in enumerate(kinds)]


def main(arguments: list[str], run: Callable[[bytes], None] = check) -> None:
    """Fuzz until libFuzzer's options say that it is enough."""
    seeds = [data for stream in SEEDS for data in inputs(stream)]
    watched = [
        *methods(Connection, GrpcStream, streams.Stream, frame_reader.FrameReader),
        *methods(http2_control.Futile, http2_request.Request, http2_request.Http2Exchange),
        *methods(ours.Decoder, head.Heads),
        *(*http2_control.TAKE.values(), head.read_head, head.check_field),
    ]
    words = ("".join(f"\\x{byte:02x}" for byte in word) for word in WORDS)
    fuzz(arguments, run, seeds, watched, words)


if __name__ == "__main__":
    main(sys.argv)
