"""HTTP/1.1 connections: requests out of bytes, answers in the order asked, limits on both.

Sources: RFC 9110 (semantics) and RFC 9112 (messages). The grammar is llhttp's, strict, by way of
httptools; what it lets pass and a proxy might read otherwise is refused here.
"""

import asyncio
import logging
import math
import re
from collections import deque
from http import HTTPStatus
from time import monotonic
from typing import Any

import httptools

from drivetrain.serve.transport.coding import check_coding
from drivetrain.serve.transport.exchange import JSON, Exchange, RefusedError, address
from drivetrain.serve.transport.http import Http, HttpLimits
from drivetrain.serve.transport.repeated import RepeatedHead

log = logging.getLogger("drivetrain.serve")

_KEPT = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"expect",
        b"host",
        b"inference-header-content-length",
        b"origin",
        b"traceparent",
        b"tracestate",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-id",
        b"x-timeout-ms",
    }
)
"""The headers that mean something to this server."""
_MANY = frozenset({b"traceparent", b"tracestate"})
"""Those that may come more than once: W3C Trace Context has a request like this served."""
_ABSOLUTE = re.compile(rb"https?://[^/?#]+", re.IGNORECASE)
_HEADER_COUNT = 100
_TARGET_BYTES = 4096
_READ_BYTES = 256 << 10
"""What the transport reads at once."""
_READY, _HEAD, _BODY, _LAST, _LINGER = range(5)
"""Stages of reading: between requests, in headers, in a body, after the last one, discarding."""


class Http1Exchange(Exchange):
    """A request of an HTTP/1.1 connection; answers go out in the order of the requests."""

    __slots__ = ("_answer", "_connection", "held", "keep")

    def __init__(self, connection: "Connection", method: bytes, target: bytes) -> None:
        super().__init__(method, target, connection.headers, connection.managed)
        self._connection = connection
        self._answer: tuple[int, bytes, bytes, bytes] | None = None
        self.held = 0
        """Bytes that it came in, however many its body is made of them."""
        self.keep = True

    def respond(
        self, status: int, body: bytes = b"", kind: bytes = JSON, extra: bytes = b""
    ) -> None:
        assert self._answer is None, "an exchange has one answer"
        self._answer = (status, body, kind, extra)
        self.on_gone = None  # it refers to who answers, and that to this: no work for the collector
        self._connection.flush()

    @property
    def client(self) -> str:
        return address(self._connection.transport)

    @property
    def answered(self) -> bool:
        return self._answer is not None

    def wire(self, date: bytes, last: bool) -> bytes:
        """The answer as it goes out.

        Args:
            date: the header line that says when.
            last: whether the connection closes behind it.
        """
        assert self._answer is not None
        status, body, kind, extra = self._answer
        if status == 100:
            return b"HTTP/1.1 100 Continue\r\n\r\n"
        return b"%b%bContent-Type: %b\r\nContent-Length: %d\r\n%b%b\r\n%b" % (
            _STATUS_LINES[status],
            date,
            kind,
            len(body),
            b"Connection: close\r\n" if last else b"",
            extra,
            b"" if self.method == b"HEAD" else body,
        )


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()


def _origin_form(target: bytes) -> bytes:
    """The path and query of an absolute target, which RFC 9112 §3.2.2 has every server take."""
    match = _ABSOLUTE.match(target)
    if match is None:
        return target
    rest = target[match.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


_STATUS_LINES = {status.value: _status_line(status) for status in HTTPStatus}


class Connection(asyncio.Protocol):
    """One client's connection.

    Args:
        http: what all connections share.
        managed: whether it came in where managing is allowed.
    """

    def __init__(self, http: Http, managed: bool = False) -> None:
        self.http = http
        self.managed = managed
        self.stage = _READY
        self.deadline = self.write_deadline = math.inf
        self.headers: dict[bytes, bytes] = {}
        self.transport: Any = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Http1Exchange] = deque()
        self._target = b""
        self._head_bytes = 0
        self._head_count = 0
        self._body: bytes | bytearray = b""
        self._method = b""
        self._keep = True
        self._repeated: RepeatedHead | None = None
        self._complete = 0
        self._upgrading = False
        self._wire_bytes = 0
        self._paused = False
        self._eof = False

    # -- the transport's side ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.deadline = monotonic() + self.http.limits.header_seconds
        if not self.http.admit(self):
            if len(self.http.connections) >= 2 * self.http.limits.connections:
                self.transport.abort()
                return
            self.http.connections.add(self)
            self._refuse(
                503,
                f"connections: found more than {self.http.limits.connections} at once, "
                "all of them busy.",
                b"Retry-After: 1\r\n",
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self.http.connections.discard(self)
        self.http.buffered -= len(self._body)
        self._body = b""
        self.stage = _LINGER
        for exchange in self._waiting:
            if exchange.on_gone is not None:
                exchange.on_gone()

    def data_received(self, data: bytes) -> None:
        fresh = self.stage is _READY
        if fresh and self._repeated is not None and self._repeat(self._repeated, data):
            return
        complete = self._complete
        while self.stage < _LAST:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade() + data[upgrade.args[0] :]
                continue
            except httptools.HttpParserCallbackError as error:
                self._callback_failed(error.__context__)
            except httptools.HttpParserError as error:
                if self.stage < _LAST:
                    self._refuse(400, f"the request is not HTTP/1.1: {error}.")
            break
        if self.stage is _READY:
            self._wire_bytes = 0
            if fresh and self._complete == complete + 1:
                self._repeated = RepeatedHead.of(data, self._method, self._target, self.headers)
        elif self.stage < _LAST:
            self._count(len(data))

    def _repeat(self, head: RepeatedHead, data: bytes) -> bool:
        """Take a whole request whose head is known; whether it is one, and within the limits."""
        body = head.content(data)
        http = self.http
        if (
            body is None
            or len(body) > http.limits.body_bytes
            or http.buffered + len(body) > http.limits.buffered_bytes
        ):
            return False
        self._method, self._target, self._keep = head.method, head.target, True
        self.headers = head.headers(body)
        self._body = body
        http.buffered += len(body)
        self.on_message_complete()
        return True

    def _without_upgrade(self) -> bytes:
        """The present request's head again, less its wish to upgrade.

        RFC 9110 §7.8 lets a server ignore it. The parser stops behind such a head and would take
        the body for the next request, so a fresh one reads the request as if nothing was asked.
        """
        self._parser = httptools.HttpRequestParser(self)
        self._upgrading = False
        if not self._keep:
            self.headers[b"connection"] = b"close"
        lines = [b"%b: %b\r\n" % pair for pair in self.headers.items() if pair[0] != b"upgrade"]
        return b"%b %b HTTP/1.1\r\n%b\r\n" % (self._method, self._target, b"".join(lines))

    def _count(self, size: int) -> None:
        """Bound what is no body: half a header, chunk extensions, trailers."""
        self._wire_bytes += size
        limits = self.http.limits
        if self._wire_bytes > 16 * len(self._body) + limits.header_bytes + _READ_BYTES:
            if self.stage is _HEAD:
                self._refuse(431, f"headers: found more than {limits.header_bytes} bytes.")
            else:
                self._refuse(400, "body: found 16 bytes of chunk framing to each of content.")

    def eof_received(self) -> bool:
        self._eof = True
        if not self._waiting:
            return False
        if self.stage < _LAST:
            self.stage, self.deadline = _LAST, math.inf
        return True  # a client may close its side and still read the answers

    def pause_writing(self) -> None:
        self._pause()
        self.write_deadline = monotonic() + self.http.limits.body_seconds

    def resume_writing(self) -> None:
        self.write_deadline = math.inf
        self._resume()

    # -- the parser's side ---------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.stage >= _LAST:
            raise RefusedError(400, "the connection is closing.")
        self.stage = _HEAD
        self._target = b""
        self.headers = {}
        self._head_bytes = self._head_count = self._wire_bytes = 0
        self.deadline = monotonic() + self.http.limits.header_seconds

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > _TARGET_BYTES:
            raise RefusedError(414, f"request target: found more than {_TARGET_BYTES} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        self._head_count += 1
        limits = self.http.limits
        if self._head_bytes > limits.header_bytes or self._head_count > _HEADER_COUNT:
            raise RefusedError(
                431,
                f"headers: found more than {limits.header_bytes} bytes or {_HEADER_COUNT} lines.",
            )
        if self.stage is not _HEAD:
            return  # a trailer field: counted, and of no meaning to this server
        name = name.lower()
        if name in _KEPT:
            value = value.strip(b" \t")  # the parser leaves what is behind it
            if name in self.headers:
                if name not in _MANY:
                    raise RefusedError(
                        400, f"header {name.decode()!r}: found twice, allowed: once."
                    )
                value = self.headers[name] + b"," + value
            self.headers[name] = value

    def on_headers_complete(self) -> None:
        headers, parser, limits = self.headers, self._parser, self.http.limits
        self._keep = parser.should_keep_alive()
        self._method = parser.get_method()
        if self._method == b"CONNECT":
            raise RefusedError(405, "method: found CONNECT; this is no proxy.")
        version = parser.get_http_version()
        if version != "1.1":
            if version != "1.0":
                raise RefusedError(505, f"HTTP version: found {version}, allowed: 1.1 and 1.0.")
            if b"transfer-encoding" in headers:
                raise RefusedError(400, "header 'transfer-encoding': found in HTTP/1.0.")
            headers.pop(b"expect", None)  # its clients take 100 for the answer (RFC 9110 §10.1.1)
        elif b"host" not in headers:
            raise RefusedError(400, "header 'host': found none, allowed: one.")
        self.stage = _BODY
        if b"upgrade" in headers and parser.should_upgrade():
            self._upgrading = True
            return
        self._check_body(headers, limits)

    def _check_body(self, headers: dict[bytes, bytes], limits: HttpLimits) -> None:
        encoding = headers.get(b"transfer-encoding")
        if encoding is not None and encoding.lower() != b"chunked":
            raise RefusedError(
                501, f"header 'transfer-encoding': found {encoding.decode('latin-1')!r}, "
                "allowed: chunked."
            )  # fmt: skip
        length = int(headers.get(b"content-length", b"0"))
        if length > limits.body_bytes:
            raise RefusedError(413, f"body: found {length} bytes, allowed: {limits.body_bytes}.")
        check_coding("content-encoding", headers.get(b"content-encoding", b"identity"))
        if encoding is not None or length:
            self.deadline = monotonic() + limits.body_seconds
        expect = headers.get(b"expect")
        if expect is not None:
            if expect.lower() != b"100-continue":
                raise RefusedError(
                    417, f"header 'expect': found {expect.decode('latin-1')!r}, "
                    "allowed: 100-continue."
                )  # fmt: skip
            interim = Http1Exchange(self, b"", b"")
            self._waiting.append(interim)
            interim.respond(100)

    def on_body(self, chunk: bytes) -> None:
        http = self.http
        # Chunks are joined as they come: a list of one-byte chunks would take 40 times its size.
        if not self._body:
            self._body = chunk
        else:
            if type(self._body) is bytes:
                self._body = bytearray(self._body)
            self._body += chunk
        http.buffered += len(chunk)
        if len(self._body) > http.limits.body_bytes:
            raise RefusedError(
                413, f"body: found more than {http.limits.body_bytes} bytes, allowed: "
                f"{http.limits.body_bytes}."
            )  # fmt: skip
        if http.buffered > http.limits.buffered_bytes:
            raise RefusedError(
                503, "the server holds as many bytes of requests as it may; try again."
            )

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        self._complete += 1
        target = self._target
        if not target.startswith(b"/"):
            target = _origin_form(target)
        exchange = Http1Exchange(self, self._method, target)
        exchange.keep = self._keep
        if self._body:
            exchange.held = len(self._body)
            exchange.body = self._body  # counted until it is answered: it is held until then
            self._body = b""
        self.stage = _READY if self._keep else _LAST
        self.deadline = math.inf
        self._waiting.append(exchange)
        if len(self._waiting) >= self.http.limits.pipeline:
            self._pause()
        try:
            self.http.application(exchange)
        except Exception:
            log.exception("a request failed")
            if not exchange.answered:
                exchange.refuse(500, "the server failed on this request; its log says why.")

    def _callback_failed(self, error: BaseException | None) -> None:
        if self.stage >= _LAST:
            return
        if isinstance(error, RefusedError):
            extra = b"Retry-After: 1\r\n" if error.status == 503 else b""
            self._refuse(error.status, str(error), extra)
        else:
            log.error("a request could not be taken", exc_info=error)
            self._refuse(500, "the server failed on this request; its log says why.")

    # -- answers -------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write the answers whose turn it is."""
        waiting = self._waiting
        while waiting and waiting[0].answered:
            exchange = waiting.popleft()
            self.http.buffered -= exchange.held
            last = not exchange.keep or (
                self.http.draining and not waiting and self.stage is _READY
            )
            self._write(exchange, last)
            if last:
                self._linger()
                return
        if not waiting:
            if self._eof:
                self.close()
                return
            if self.stage is _READY:
                self.deadline = monotonic() + self.http.limits.idle_seconds
        if self._paused:
            self._resume()

    def _write(self, exchange: Http1Exchange, last: bool) -> None:
        if not self.transport.is_closing():
            self.transport.write(exchange.wire(self.http.date, last))

    def _refuse(self, status: int, message: str, extra: bytes = b"") -> None:
        """Answer an error after all earlier answers, and read no more."""
        self.stage, self.deadline = _LAST, math.inf
        self.http.buffered -= len(self._body)
        self._body = b""
        exchange = Http1Exchange(self, b"", b"")
        exchange.keep = False
        self._waiting.append(exchange)
        self.http.refused(status, address(self.transport))
        exchange.refuse(status, message, extra)

    def _linger(self) -> None:
        """Close so that the last answer arrives: unread bytes at a close would reset it."""
        if self.transport.is_closing():
            return
        self.stage = _LINGER
        self.deadline = self.http.last_deadline(self.transport)
        if self._eof or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        if self._paused:
            self._resume()

    # -- time and flow -------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """No request is under way."""
        return self.stage is _READY and not self._waiting

    @property
    def ending(self) -> bool:
        """Its last answer is written."""
        return self.stage == _LINGER

    def drain(self) -> None:
        """Nothing to say: the answers that follow say ``Connection: close``."""

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()

    def close(self) -> None:
        """Close after what is written has gone out."""
        self.stage = _LINGER
        self.deadline = self.http.last_deadline(self.transport)
        self.transport.close()

    def expire(self) -> None:
        """The deadline has passed."""
        if self.stage is _LINGER or self.write_deadline < monotonic():
            self.transport.abort()
        elif self.stage is _READY:
            self.close()
        elif self._paused:  # it is this server that does not read on, not the client that is slow
            self.deadline = monotonic() + self.http.limits.header_seconds
        else:
            limits = self.http.limits
            part, seconds = (
                ("headers", limits.header_seconds)
                if self.stage is _HEAD
                else ("body", limits.body_seconds)
            )
            self._refuse(408, f"{part}: found no end within {seconds:g} s.")

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        room = len(self._waiting) <= self.http.limits.pipeline // 2
        writable = self.write_deadline == math.inf
        if room and writable and self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()
