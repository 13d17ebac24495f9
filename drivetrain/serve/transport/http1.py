"""HTTP/1.1 connections: requests in, answers out in the order asked, time-outs, and their end.

Sources: RFC 9110 (semantics) and RFC 9112 (messages).
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Mapping
from time import monotonic
from typing import Any

from drivetrain.serve.transport.exchange import RefusedError, address
from drivetrain.serve.transport.gates import Gate
from drivetrain.serve.transport.http import Http
from drivetrain.serve.transport.http1_answer import CONTINUE, INTERIM, Http1Exchange, wire
from drivetrain.serve.transport.http1_request import HEAD, LAST, LINGER, READY, RequestReader

log = logging.getLogger("drivetrain.serve")

_NO_HEADERS: Mapping[bytes, bytes] = {}


class Connection(asyncio.Protocol):
    """One client's connection.

    Args:
        http: what all connections share.
        managed: whether it came in where managing is allowed.

    Attributes:
        stage: of reading, as :mod:`drivetrain.serve.transport.http1_request` names them.
    """

    def __init__(self, http: Http, managed: bool = False) -> None:
        self.http = http
        self.managed = managed
        self.stage = READY
        self.idle_since = monotonic()
        self.deadline = self.write_deadline = math.inf
        self.transport: Any = None
        self._reader = RequestReader(self)
        self._waiting: deque[Http1Exchange] = deque()
        self._application = http.application
        self._before_pause = http.limits.pipeline - 1
        self._paused = self._held = False
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
            found = f"found more than {self.http.limits.connections} at once, all of them busy"
            self.refuse(RefusedError(503, f"connections: {found}."))

    def connection_lost(self, exc: Exception | None) -> None:
        self.http.connections.discard(self)
        self._reader.drop()
        self.stage = LINGER
        for exchange in self._waiting:
            if exchange.on_gone is not None:
                exchange.on_gone()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)

    def eof_received(self) -> bool:
        self._eof = True
        if not self._waiting:
            return False
        if self.stage < LAST:
            self.stage, self.deadline = LAST, math.inf
        return True  # a client may close its side and still read the answers

    def pause_writing(self) -> None:
        self._pause()
        self.write_deadline = monotonic() + self.http.limits.body_seconds

    def resume_writing(self) -> None:
        self.write_deadline = math.inf
        self._resume()

    # -- the reader's side ---------------------------------------------------------------------

    def take(
        self,
        method: bytes,
        target: bytes,
        headers: Mapping[bytes, bytes],
        body: bytes | bytearray,
        keep: bool,
    ) -> None:
        """Hand on a whole request.

        Args:
            method: such as ``b"POST"``.
            target: path and query.
            headers: those that mean something to the server.
            body: counted in what all connections hold, until it is answered.
            keep: whether another may follow.
        """
        exchange = Http1Exchange(self, method, target, headers, body)
        if keep and len(self._waiting) < self._before_pause:  # as _expect does it for any
            self.stage = READY
            self.deadline = math.inf
            self._waiting.append(exchange)
        else:
            self._expect(exchange, keep)
        try:
            self._application(exchange)
        except Exception:
            log.exception("a request failed")
            if not exchange.answered:
                exchange.refuse(500, "the server failed on this request; its log says why.")

    def answer_error(self, method: bytes, target: bytes, error: RefusedError, keep: bool) -> None:
        """Answer a whole request with an error, and read on."""
        self.http.refused(error.status, address(self.transport), method, target)
        exchange = self._expect(Http1Exchange(self, method, target, _NO_HEADERS), keep)
        exchange.refuse(error.status, str(error), error.extra)

    def turn_away(self, method: bytes, target: bytes, gate: Gate, keep: bool) -> None:
        """Answer a whole request whose target takes none for now."""
        if self._waiting or not keep or method == b"HEAD" or self.http.draining:
            exchange = self._expect(Http1Exchange(self, method, target, _NO_HEADERS), keep)
            exchange.refuse(503, str(gate.error), gate.error.extra)
        else:
            self.stage = READY
            self.idle_since = monotonic()
            self.deadline = self.idle_since + self.http.limits.idle_seconds
            if not self.transport.is_closing():
                self.transport.write(gate.answer)
        gate.turn_away(self, self.transport)

    def go_on(self) -> None:
        """Say that the body may come, behind all earlier answers."""
        interim = Http1Exchange(self, b"", b"", _NO_HEADERS)
        self._waiting.append(interim)
        interim.respond(100)

    def fail(self, error: BaseException | None, method: bytes = b"", target: bytes = b"") -> None:
        """The reader has raised; of a request whose head is read, that is known."""
        if self.stage >= LAST:
            return
        if not isinstance(error, RefusedError):
            log.error("a request could not be taken", exc_info=error)
            error = RefusedError(500, "the server failed on this request; its log says why.")
        self.refuse(error, method, target)

    def refuse(self, error: RefusedError, method: bytes = b"", target: bytes = b"") -> None:
        """Answer an error after all earlier answers, and read no more."""
        self.stage, self.deadline = LAST, math.inf
        self._reader.drop()
        exchange = Http1Exchange(self, b"", b"", _NO_HEADERS)
        exchange.keep = False
        self._waiting.append(exchange)
        self.http.refused(error.status, address(self.transport), method, target)
        exchange.refuse(error.status, str(error), error.extra)

    def _expect(self, exchange: Http1Exchange, keep: bool) -> Http1Exchange:
        """Count on the answer to a whole request."""
        exchange.keep = keep
        self.stage = READY if keep else LAST
        self.deadline = math.inf
        self._waiting.append(exchange)
        if len(self._waiting) >= self.http.limits.pipeline:
            self._pause()
        return exchange

    # -- answers -------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write the answers whose turn it is."""
        waiting, http = self._waiting, self.http
        while waiting and (answer := waiting[0].answer) is not None:
            exchange = waiting.popleft()
            http.buffered -= exchange.held
            last = not exchange.keep or (http.draining and not waiting and self.stage is READY)
            if not self.transport.is_closing():
                status, kind, extra, content, length = answer
                if last:
                    extra = b"Connection: close\r\n" + extra
                parts = (status, http.date, kind, extra, content, length)
                self.transport.write(INTERIM if status is CONTINUE else wire(*parts))
            if last:
                self._linger()
                return
        if not waiting:
            if self._eof:
                self.close()
                return
            if self.stage is READY:
                self.idle_since = monotonic()
                self.deadline = self.idle_since + self.http.limits.idle_seconds
        if self._paused:
            self._resume()

    def _linger(self) -> None:
        """Close so that the last answer arrives: unread bytes at a close would reset it."""
        if self.transport.is_closing():
            return
        self.stage = LINGER
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
        return self.stage is READY and not self._waiting

    @property
    def ending(self) -> bool:
        """Its last answer is written."""
        return self.stage == LINGER

    def drain(self) -> None:
        """Nothing to say: the answers that follow say ``Connection: close``."""

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()

    def close(self) -> None:
        """Close after what is written has gone out."""
        self.stage = LINGER
        self.deadline = self.http.last_deadline(self.transport)
        self.transport.close()

    def expire(self) -> None:
        """The deadline has passed."""
        if self.stage is LINGER or self.write_deadline < monotonic():
            self.transport.abort()
        elif self.stage is READY:
            self.close()
        elif self._paused:  # it is this server that does not read on, not the client that is slow
            self.deadline = monotonic() + self.http.limits.header_seconds
        else:
            limits = self.http.limits
            part, seconds = (
                ("headers", limits.header_seconds)
                if self.stage is HEAD
                else ("body", limits.body_seconds)
            )
            self.refuse(RefusedError(408, f"{part}: found no end within {seconds:g} s."))

    def hold(self) -> None:
        """Leave the client unread for now."""
        self._held = True
        self._pause()

    def let_in(self) -> None:
        """Read on."""
        self._held = False
        self._resume()

    def _pause(self) -> None:
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        room = len(self._waiting) <= self.http.limits.pipeline // 2 and not self._held
        writable = self.write_deadline == math.inf
        if room and writable and self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()
