"""A stream of HTTP/2 that carries one request, and the exchange that answers it."""

import logging
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from drivetrain.serve.transport.exchange import JSON, Exchange, RefusedError
from drivetrain.serve.transport.frames import (
    END_HEADERS,
    HEADERS,
    PROTOCOL_ERROR,
    StreamFaultError,
    frame,
)
from drivetrain.serve.transport.gates import Gate
from drivetrain.serve.transport.grpc import GrpcExchange
from drivetrain.serve.transport.head import Head
from drivetrain.serve.transport.hpack import encode, line_fields, name_prefix, plain_string
from drivetrain.serve.transport.streams import Stream

if TYPE_CHECKING:
    from drivetrain.serve.transport.http2 import Connection

log = logging.getLogger("drivetrain.serve")

_CONTINUE = encode([(b":status", b"100")])
_LENGTH = name_prefix(b"content-length")


class Request(Stream):
    """A stream with one request and one answer."""

    __slots__ = ("_answered", "_content", "exchange")

    def __init__(self, connection: "Connection", number: int, head: Head, opened: float) -> None:
        super().__init__(connection, number, head, opened)
        self._answered = False
        self._content: bytes | bytearray = b""
        self.exchange: Exchange | None = None
        """The one that has no answer yet."""

    def begin(self, end: bool) -> None:
        """Take the head.

        Args:
            end: whether there is no content.

        Raises:
            StreamFaultError: it announced some.
        """
        head, connection = self.head, self.connection
        assert connection is not None
        self.ended = end
        most = connection.http.limits.body_bytes
        if head.refusal is not None:
            self.refuse(head.refusal)
        elif head.length is not None and head.length > most + 5 * head.grpc:
            self.refuse(RefusedError(413, f"body: found {head.length} bytes, allowed: {most}."))
        elif end:
            if head.length:
                raise StreamFaultError(PROTOCOL_ERROR)
            self._serve(b"")
        elif head.continues:
            connection.write(frame(HEADERS, END_HEADERS, self.number, _CONTINUE))

    def received(self, chunk: bytes, size: int, end: bool) -> None:
        if self._answered:  # refused, and the client takes no answer yet
            self.ended = end
            return
        content = self._content
        if not content:
            content = self._content = chunk
        else:
            # Joined as they come: a list of one-byte chunks would take 40 times its size.
            if type(content) is bytes:
                content = self._content = bytearray(content)
            content += chunk
        try:
            self.hold(len(chunk))
            self._check(content, end)
        except RefusedError as error:
            self.refuse(error)
            return
        if end:
            self.ended = True
            self._content = b""
            self._serve(content)
        else:
            self.grant(size)

    def _check(self, content: bytes | bytearray, end: bool) -> None:
        """Compare what came with what was announced and with what is allowed."""
        assert self.connection is not None
        head, size = self.head, len(content)
        if head.length is not None and (size > head.length or (end and size < head.length)):
            raise StreamFaultError(PROTOCOL_ERROR)
        if head.grpc:  # what is too long is refused by its prefix, before the rest is read
            size = size - 5 if size < 5 else max(size - 5, int.from_bytes(content[1:5], "big"))
        most = self.connection.http.limits.body_bytes
        if size > most:
            raise RefusedError(413, f"body: found {size} bytes, allowed: {most}.")

    def _serve(self, content: bytes | bytearray) -> None:
        assert self.connection is not None
        http = self.connection.http
        exchange = self._exchange()
        try:
            if isinstance(exchange, GrpcExchange):
                exchange.unframe(content, http.limits.body_bytes)
            else:
                exchange.body = content
        except RefusedError as error:
            http.refused(error.status, exchange.client, exchange.method, exchange.target)
            exchange.refuse(error.status, str(error), error.extra)
            return
        try:
            http.application(exchange)
        except Exception:
            log.exception("a request failed")
            if not exchange.answered:
                exchange.refuse(500, "the server failed on this request; its log says why.")

    def _exchange(self) -> "GrpcExchange | Http2Exchange":
        kind = GrpcExchange if self.head.grpc else Http2Exchange
        self.exchange = exchange = kind(self)
        return exchange

    def refuse(self, error: RefusedError) -> None:
        assert self.connection is not None
        told = self.connection.http.refused
        told(error.status, self.client, self.head.method, self.head.target)
        self._exchange().refuse(error.status, str(error), error.extra)

    def turn_away(self, gate: Gate, end: bool) -> None:
        """Answer a request whose target takes none for now.

        Args:
            gate: the target's.
            end: whether there is no content.
        """
        assert self.connection is not None
        self.ended = end
        gate.tell(self.connection.transport)
        self._exchange().refuse(503, str(gate.error), gate.error.extra)

    def overdue(self, now: float, seconds: float) -> None:
        super().overdue(now, seconds)
        late = not self.ended and self.opened + seconds < now
        if late and not self._answered and self.connection is not None:
            self.refuse(RefusedError(408, f"body: found no end within {seconds:g} s."))

    def gone(self) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None and exchange.on_gone is not None:
            exchange.on_gone()

    def answer(self, block: bytes, content: bytes, trailers: bytes = b"") -> None:
        self.exchange = None
        self._answered = True
        if self.connection is not None:
            super().answer(block, content, trailers)

    def _leave(self, connection: "Connection") -> None:
        self._content = b""
        super()._leave(connection)


class Http2Exchange(Exchange):
    """A request of plain HTTP/2."""

    __slots__ = ("_stream", "_transport", "_was_answered")

    def __init__(self, stream: Request) -> None:
        assert stream.connection is not None
        head = stream.head
        super().__init__(head.method, head.target, head.headers, stream.connection.managed)
        self._stream = stream
        self._transport = stream.connection.transport  # the stream forgets it with its answer
        self._was_answered = False

    def respond(
        self, status: int, body: bytes = b"", kind: bytes = JSON, extra: bytes = b""
    ) -> None:
        assert not self._was_answered, "an exchange has one answer"
        self._was_answered = True
        self.on_gone = None  # it refers to who answers, and that to this: no work for the collector
        stream = self._stream
        if stream.connection is None:
            return
        block = b"%b%b%b%b" % (
            _opening(status, kind),
            _LENGTH,
            plain_string(b"%d" % len(body)),
            _lines(stream.connection.http.date),
        )
        if extra:
            block += line_fields(extra)
        stream.answer(block, b"" if self.method == b"HEAD" else body)

    @property
    def client(self) -> str:
        return self._stream.client

    @property
    def answered(self) -> bool:
        return self._was_answered


@cache
def _opening(status: int, kind: bytes) -> bytes:
    return encode([(b":status", b"%d" % status), (b"content-type", kind)])


_lines = lru_cache(4)(line_fields)
"""For the date, which is the same for a second."""
