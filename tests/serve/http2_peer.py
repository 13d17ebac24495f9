"""The client's end of an HTTP/2 connection: by hand, and by the state machine of a peer."""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from wire import Wire

from drivetrain.serve.transport.exchange import Exchange
from drivetrain.serve.transport.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from drivetrain.serve.transport.hpack import Decoder, encode
from drivetrain.serve.transport.http import Http, HttpLimits
from drivetrain.serve.transport.http2 import Connection

Fields = list[tuple[bytes, bytes]]
Frame = tuple[int, int, int, bytes]

POST: Fields = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a"),
    (b":authority", b"x"),
]
GET: Fields = [(b":method", b"GET"), *POST[1:]]
END = END_HEADERS | END_STREAM
HELLO = PREFACE + frame(SETTINGS, 0, 0)
BLOCK = encode(POST)
OPENED = frame(HEADERS, END_HEADERS, 1, BLOCK)
"""A first request whose content is to come."""


class Peer:
    """The client's end of a connection, and the server behind it."""

    def __init__(self, application: Callable[[Exchange], None], limits: HttpLimits) -> None:
        self.loop = asyncio.new_event_loop()
        self.asked: list[Exchange] = []
        self.refusals: list[int] = []
        self.wire = Wire()
        self._application = application
        self._read = 0
        self._decoder = Decoder()
        self.http = Http(self._take, limits, lambda status, *_: self.refusals.append(status))
        self.connection: Connection = self.do(lambda: Connection(self.http))
        self.do(lambda: self.connection.connection_made(self.wire))

    def _take(self, exchange: Exchange) -> None:
        self.asked.append(exchange)
        self._application(exchange)

    def do(self, call: Callable[[], Any]) -> Any:
        """Call something on the loop, and let follow what follows."""

        async def turn() -> Any:
            result = call()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(turn())

    def send(self, *data: bytes) -> list[Frame]:
        """Send it in one piece; gives the frames that came since the last time."""
        self.do(lambda: self.connection.data_received(b"".join(data)))
        return self.frames()

    def frames(self) -> list[Frame]:
        """Kind, flags, stream and payload of the frames that came since the last time."""
        data = b"".join(self.wire.writes)[self._read :]
        self._read += len(data)
        found: list[Frame] = []
        while data:
            high, low, kind, flags, number = struct.unpack_from(">BHBBL", data)
            size = high << 16 | low
            found.append((kind, flags, number, data[9 : 9 + size]))
            assert len(found[-1][3]) == size
            data = data[9 + size :]
        return found

    def fields(self, found: list[Frame]) -> list[dict[bytes, bytes]]:
        """The header blocks among these frames."""
        blocks = [self._decoder.decode(block) for kind, _, _, block in found if kind == HEADERS]
        return [dict(block) for block in blocks if block is not None]

    def statuses(self, found: list[Frame]) -> list[int]:
        return [int(fields[b":status"]) for fields in self.fields(found)]


def of(kind: int, found: list[Frame]) -> list[Frame]:
    return [one for one in found if one[0] == kind]


def resets(found: list[Frame]) -> list[tuple[int, int]]:
    """Stream and code of each RST_STREAM."""
    return [(number, int.from_bytes(code)) for _, _, number, code in of(RST_STREAM, found)]


def goaways(found: list[Frame]) -> list[tuple[int, int]]:
    """Last stream and code of each GOAWAY."""
    return [struct.unpack_from(">LL", payload) for _, _, _, payload in of(GOAWAY, found)]


def request(number: int, fields: Fields = POST, body: bytes | None = b"hello") -> bytes:
    """The frames of one request."""
    block = encode(fields)
    if body is None:
        return frame(HEADERS, END, number, block)
    return frame(HEADERS, END_HEADERS, number, block) + frame(DATA, END_STREAM, number, body)


def setting(name: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HL", name, value))


def window(number: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, number, struct.pack(">L", size))


def echo(exchange: Exchange) -> None:
    exchange.respond(200, bytes(exchange.body), b"text/plain")


def later(exchange: Exchange) -> None:
    """No answer yet."""


class Browser:
    """A client that keeps to the protocol: the state machine of the library h2."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.bodies: dict[int, bytes] = {}
        self.heads: dict[int, dict[bytes, bytes]] = {}
        self.trailers: dict[int, dict[bytes, bytes]] = {}
        self.ended: set[int] = set()
        self.others: list[Any] = []
        self.takes = True
        self._read = 0

    def exchange(self) -> None:
        """Send and read until both sides have nothing more to say."""
        while True:
            sent = self.h2.data_to_send()
            if sent:
                self.peer.do(lambda data=sent: self.peer.connection.data_received(data))
            came = b"".join(self.peer.wire.writes)[self._read :]
            self._read += len(came)
            if not sent and not came:
                return
            for event in self.h2.receive_data(came):
                self._heed(event)

    def _heed(self, event: Any) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.heads[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.TrailersReceived):
            self.trailers[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
            if self.takes:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
        else:
            self.others.append(event)

    def ask(self, fields: Fields, body: bytes = b"") -> int:
        """Begin a request and send what the windows let; gives its stream."""
        number = self.h2.get_next_available_stream_id()
        self.h2.send_headers(number, fields, end_stream=not body)
        self.exchange()
        while body:
            room = min(
                self.h2.local_flow_control_window(number),
                self.h2.max_outbound_frame_size,
                len(body),
            )
            assert room > 0, "the server grants what it has read"
            self.h2.send_data(number, body[:room], end_stream=room == len(body))
            body = body[room:]
            self.exchange()
        return number


def wait(client: Peer, seconds: float) -> list[Frame]:
    """Let time pass, with the ticks that a server has."""

    async def ticks() -> None:
        end = client.loop.time() + seconds
        while client.loop.time() < end:
            await asyncio.sleep(0.01)
            client.http.tick()
        await asyncio.sleep(0)

    client.loop.run_until_complete(ticks())
    return client.frames()


CALL = [*POST, (b"content-type", b"application/grpc"), (b"te", b"trailers")]


def ending(peer: Peer, found: list[Frame]) -> tuple[int, str]:
    """The status of gRPC that ends the one call among these frames, and its message."""
    *_, last = peer.fields(found)
    return int(last[b"grpc-status"]), last.get(b"grpc-message", b"").decode()
