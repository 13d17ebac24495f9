"""HTTP/2 connections: frames in and out, the table of streams, and how a connection ends.

Source: RFC 9113. Requests, plain or gRPC, go to the application like those of HTTP/1.1; streaming
calls of gRPC go to whom :attr:`drivetrain.serve.transport.http.Http.streams` names.
"""

import asyncio
import logging
import math
from time import monotonic
from typing import Any

from drivetrain.serve.transport import frames
from drivetrain.serve.transport.exchange import address
from drivetrain.serve.transport.frame_reader import FRAME_MOST, FrameReader
from drivetrain.serve.transport.frames import (
    PROTOCOL_ERROR,
    STREAM_MOST,
    ConnectionFaultError,
    StreamFaultError,
    frame,
)
from drivetrain.serve.transport.grpc_stream import GrpcStream
from drivetrain.serve.transport.head import Heads, MalformedError
from drivetrain.serve.transport.hpack import EMPTY_TABLE, HpackError
from drivetrain.serve.transport.http import Http
from drivetrain.serve.transport.http2_control import DRAIN_PING, FAULT_COST, Futile
from drivetrain.serve.transport.http2_request import Request
from drivetrain.serve.transport.streams import STREAM_WINDOW, Stream

log = logging.getLogger("drivetrain.serve")

_WINDOW = 16 << 20
"""What a client may send on all streams before more is granted."""
_OUT_BYTES = 1 << 20
"""What may be written in one turn of the loop by streams that have more to send."""
_RESETS = 1024
"""Streams that were reset here and on which the client may still send: the newest."""
_WATCH_SECONDS = 1.0
"""How often a connection with streams looks for what is overdue."""
_DRAIN_SECONDS = 1.0
"""How long the answer to the ping behind a first GOAWAY is awaited."""
_ALIVE_PING = b"\0" * 8


class Connection(asyncio.Protocol):
    """One client's connection, from its preface on.

    Args:
        http: what all connections share.
        managed: whether it came in where managing is allowed.

    Attributes:
        streams: those that are open or half-closed, by their number.
        blocked: those with something to send for which there is no window, in their order.
        window: bytes that the client takes on all streams.
        initial_window: what it takes on a new one.
        frame_bytes: the longest content that it takes in one frame.
        resized: whether the next header block is to say that this server keeps no table
            (RFC 7541 §4.2).
        ending: whether the last frame is written.
    """

    def __init__(self, http: Http, managed: bool = False) -> None:
        self.http = http
        self.managed = managed
        self.deadline = self.write_deadline = math.inf
        self.transport: Any = None
        self.streams: dict[int, Stream] = {}
        self.blocked: dict[int, Stream] = {}
        self.window = self.initial_window = frames.WINDOW_BYTES
        self.frame_bytes = frames.FRAME_BYTES
        self.resized = False
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(self, http.limits.header_bytes)
        self._heads = Heads(
            http.limits.header_bytes,
            lambda method, target, headers: http.judge(method, target, headers, managed),
        )
        self._last = 0
        self._received = 0
        self._heard = self.idle_since = monotonic()
        self._resets: dict[int, None] = {}
        self._futile = Futile()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._corked = False
        self._final: int | None = None
        self._drain_until = math.inf
        self._idle_seconds = http.limits.idle_seconds
        self._eof = self.ending = False
        self._pinged = -math.inf

    # -- the transport's side ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        limits = self.http.limits
        self.deadline = self._heard + limits.header_seconds
        settings = (
            (frames.MAX_CONCURRENT_STREAMS, limits.streams),
            (frames.INITIAL_WINDOW_SIZE, STREAM_WINDOW),
            (frames.MAX_FRAME_SIZE, FRAME_MOST),
            (frames.MAX_HEADER_LIST_SIZE, limits.header_bytes),
            (frames.NO_RFC7540_PRIORITIES, 1),
        )
        self.write(
            frame(frames.SETTINGS, 0, 0, b"".join(frames.SETTING.pack(*pair) for pair in settings))
        )
        self._grant(_WINDOW - frames.WINDOW_BYTES)
        if not self.http.admit(self):
            self.http.connections.add(self)
            self._fail(frames.NO_ERROR, f"more than {limits.connections} connections, all busy")
        elif self.http.draining:
            self.drain()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ending = True
        self.http.connections.discard(self)
        for stream in list(self.streams.values()):
            stream.lost()

    def data_received(self, data: bytes) -> None:
        if self.ending:
            return  # it lingers, so that its last frames arrive
        self._corked = True
        self._heard = monotonic()
        try:
            self._received += self._reader.feed(data)
            if self._received > _WINDOW // 2:
                self._grant(self._received)
                self._received = 0
            if self._reader.partial:
                self._await_rest()
        except ConnectionFaultError as fault:
            self._fail(fault.code, str(fault))
        except HpackError as error:
            self._fail(frames.COMPRESSION_ERROR, str(error))
        except Exception:
            log.exception("a connection failed")
            self._fail(frames.INTERNAL_ERROR, "the server failed; its log says why")
        self._flush()

    def _await_rest(self) -> None:
        """See to it that what has begun is whole in time."""
        end = self._reader.partial_since + self.http.limits.header_seconds
        self.deadline = min(self.deadline, end)

    def eof_received(self) -> bool:
        self._eof = True
        for stream in list(self.streams.values()):
            if not stream.ended:
                stream.lost()
        return bool(self.streams)  # a client may close its side and still read the answers

    def pause_writing(self) -> None:
        self.transport.pause_reading()
        self.write_deadline = monotonic() + self.http.limits.body_seconds

    def resume_writing(self) -> None:
        self.write_deadline = math.inf
        if not self.transport.is_closing():
            self.transport.resume_reading()
            self.pump()

    # -- streams in ----------------------------------------------------------------------------

    def take_block(self, number: int, block: bytes, end: bool) -> None:
        """A whole header block: it opens a stream, or it is the trailers of one."""
        if number <= self._last or not number & 1:
            self._take_trailers(number, block, end)
            return
        self._last = number
        if self._final is not None:
            self._heads.skip(block)  # the client knows that it is not answered
            self._remember(number)
            return
        try:
            head = self._heads.read(block)
        except MalformedError as error:
            log.debug("a request was malformed: %s", error)
            self._refuse_stream(number, PROTOCOL_ERROR, 400)
            return
        http, streams = self.http, self.streams
        if len(streams) >= http.limits.streams:
            self._refuse_stream(number, frames.REFUSED_STREAM, 503)
            return
        if not streams:
            self.deadline = self._heard + _WATCH_SECONDS
        if head.grpc and head.target in http.streams:
            call = GrpcStream(self, number, head, self._heard)
            streams[number] = call
            call.begin(http.streams[head.target], end)
            return
        request = streams[number] = Request(self, number, head, self._heard)
        closed = http.gates.closed
        if closed and head.refusal is None and head.target in closed:
            request.turn_away(closed[head.target], end)
        elif end or not head.plain:
            request.begin(end)

    def _take_trailers(self, number: int, block: bytes, end: bool) -> None:
        try:
            self._heads.read_trailers(block)
        except MalformedError:
            end = False
        stream = self.streams.get(number)
        if stream is None or stream.ended:
            self.check_closed(number)
        elif not end:
            raise StreamFaultError(PROTOCOL_ERROR)
        else:
            stream.trailed()

    def idle_number(self, number: int) -> bool:
        """Whether it is of a stream that was never opened."""
        return number > self._last or not number & 1

    def check_closed(self, number: int) -> None:
        """Judge a frame that nobody awaits on this stream (§5.1)."""
        if self.idle_number(number):
            raise ConnectionFaultError(
                PROTOCOL_ERROR, f"a frame on the stream {number}, which is idle"
            )
        if number in self._resets:
            return  # it was under way when the stream was reset
        if number in self.streams:
            raise StreamFaultError(frames.STREAM_CLOSED)
        raise ConnectionFaultError(frames.STREAM_CLOSED, f"a frame on the stream {number}, closed")

    def _refuse_stream(self, number: int, code: int, status: int) -> None:
        """End a stream before it is one."""
        self.http.refused(status, address(self.transport))
        self.write_reset(number, code, expect_more=True)
        self.spend(FAULT_COST)

    def end_stream(self, number: int, code: int) -> None:
        """End a stream for its client's fault.

        Raises:
            ConnectionFaultError: it has ended by itself already, and nothing may follow that.
        """
        stream = self.streams.get(number)
        if stream is None:
            if number not in self._resets:
                raise ConnectionFaultError(code, f"a fault on stream {number}, which is closed")
        else:
            if not stream.ended:
                self.http.refused(400, address(self.transport))
            stream.reset(code)
        self.spend(FAULT_COST)

    def spend(self, cost: int) -> None:
        """Count what the client makes this server do for nothing.

        Raises:
            ConnectionFaultError: it is too much.
        """
        self._futile.spend(cost, self._last)

    # -- frames out ----------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send frames, in one write with all others of this turn of the loop."""
        self._out.append(data)
        self._out_bytes += len(data)
        if not self._corked:
            self._corked = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._corked = False
        if self._out:
            out, self._out, self._out_bytes = self._out, [], 0
            if not self.transport.is_closing():
                self.transport.write(b"".join(out))
            if self.blocked and not self.ending:
                self.pump()

    @property
    def congested(self) -> bool:
        """Whether as much is written as may wait here for the client to read it."""
        return self._out_bytes > _OUT_BYTES or self.write_deadline < math.inf

    def with_resize(self, block: bytes) -> bytes:
        """A header block, and before it what a change of the client's table asks for."""
        if self.resized:
            self.resized = False
            return EMPTY_TABLE + block
        return block

    def write_reset(self, number: int, code: int, expect_more: bool) -> None:
        """Send RST_STREAM.

        Args:
            number: the stream.
            code: why.
            expect_more: whether the client may have sent more before it reads that.
        """
        self.write(frame(frames.RST_STREAM, 0, number, frames.LONG.pack(code)))
        if expect_more:
            self._remember(number)

    def _remember(self, number: int) -> None:
        self._resets[number] = None
        if len(self._resets) > _RESETS:
            del self._resets[next(iter(self._resets))]

    def _grant(self, size: int) -> None:
        self.write(frame(frames.WINDOW_UPDATE, 0, 0, frames.LONG.pack(size)))

    def set_initial_window(self, size: int) -> None:
        """Change what the client takes on each stream, the open ones included (§6.9.2).

        Raises:
            ConnectionFaultError: one of them becomes larger than a window may be.
        """
        change = size - self.initial_window
        self.initial_window = size
        for stream in list(self.streams.values()):
            try:
                stream.widen(change)
            except StreamFaultError as fault:
                raise ConnectionFaultError(fault.code, "a window above 2^31 - 1") from None

    def pump(self) -> None:
        """Send what waited for a window, the oldest first."""
        for stream in list(self.blocked.values()):
            if self.window <= 0 or self.congested:
                break
            stream.pump()

    # -- the end -------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """No request is under way."""
        return not (self.streams or self._reader.partial or self.ending)

    def left(self, stream: Stream) -> None:
        """A stream is closed."""
        del self.streams[stream.number]
        if stream.number in self.blocked:
            del self.blocked[stream.number]
        if not self.streams and not self.ending:
            self.idle_since = monotonic()
            self.deadline = self.idle_since + self._idle_seconds
            if self._eof or self._final is not None:
                self._loop.call_soon(self._end)
            elif self._drain_until < math.inf:
                self.deadline = self._drain_until

    def depart(self) -> None:
        """The client goes: close when it has its answers and has asked for no more."""
        self._idle_seconds = 0.0
        if not self.streams:
            self.deadline = self._heard

    def drain(self) -> None:
        """Tell the client to go elsewhere; what it sends before it knows is answered (§6.8)."""
        if self._drain_until == math.inf and not self.ending:
            goaway = frame(frames.GOAWAY, 0, 0, frames.HEAD_OF_GOAWAY.pack(STREAM_MOST, 0))
            self.write(goaway + frame(frames.PING, 0, 0, DRAIN_PING))
            self._drain_until = monotonic() + _DRAIN_SECONDS
            self.deadline = min(self.deadline, self._drain_until)

    def finalise(self) -> None:
        """The client knows that it is to go: take no further stream."""
        if self._drain_until < math.inf and self._final is None:
            self._write_goaway(frames.NO_ERROR, "")
            for stream in list(self.streams.values()):
                stream.drain()
            if not self.streams:
                self._loop.call_soon(self._end)

    def _write_goaway(self, code: int, message: str) -> None:
        self._final = self._last
        debug = message.encode()[:512]
        payload = frames.HEAD_OF_GOAWAY.pack(self._last, code) + debug
        self.write(frame(frames.GOAWAY, 0, 0, payload))

    def _fail(self, code: int, message: str) -> None:
        """End the connection for an error (§5.4.1)."""
        if self.ending:
            return
        if code != frames.NO_ERROR:
            log.debug("a connection of HTTP/2 ends: %s", message)
        self._write_goaway(code, message)
        self._end()
        for stream in list(self.streams.values()):
            stream.lost()

    def _end(self) -> None:
        """Close so that the last frames arrive: unread bytes at a close would reset them."""
        if self.ending or self.transport.is_closing():
            return
        self.ending = True
        self._flush()
        self.deadline = self.http.last_deadline(self.transport)
        if self._eof or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.transport.write_eof()

    def close(self) -> None:
        """Close after what is written has gone out."""
        if not self.ending:
            if self._final is None:
                self._write_goaway(frames.NO_ERROR, "")
            self.ending = True
            self._flush()
        self.deadline = self.http.last_deadline(self.transport)
        self.transport.close()

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()

    def expire(self) -> None:
        """A deadline has passed."""
        now, limits = monotonic(), self.http.limits
        if self.ending or self.write_deadline < now:
            self.abort()
            return
        if self._drain_until < now:
            self.finalise()
        if self._reader.partial_since + limits.header_seconds < now:
            self._fail(frames.ENHANCE_YOUR_CALM, f"no whole frame in {limits.header_seconds:g} s")
        elif self.streams:
            self.deadline = now + _WATCH_SECONDS
            self._watch(now)
        elif self.idle_since + self._idle_seconds <= now or not self._reader.greeted:
            self._write_goaway(frames.NO_ERROR, "")
            self._end()
        else:
            self.deadline = min(
                self.idle_since + self._idle_seconds,
                self._reader.partial_since + limits.header_seconds,
                self._drain_until if self._final is None else math.inf,
            )

    def _watch(self, now: float) -> None:
        """Look for what takes too long, and whether a silent client is still there."""
        limits = self.http.limits
        for stream in list(self.streams.values()):
            stream.overdue(now, limits.body_seconds)
        quiet = now - self._heard
        if quiet > limits.idle_seconds + limits.header_seconds:
            self.abort()
        elif quiet > limits.idle_seconds and self._pinged < self._heard:
            self._pinged = now
            self.write(frame(frames.PING, 0, 0, _ALIVE_PING))
