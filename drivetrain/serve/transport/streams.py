"""One stream of an HTTP/2 connection: its windows, its end, and what waits to be sent.

Source: RFC 9113 §5.1 (states), §5.2 and §6.9 (flow control). A stream that is not in its
connection's table is idle or closed; one that is there is open, or half-closed for its client.
"""

import math
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from drivetrain.serve.transport.exchange import RefusedError, address
from drivetrain.serve.transport.frames import (
    CANCEL,
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    HEAD,
    HEADERS,
    LONG,
    NO_ERROR,
    WINDOW_MOST,
    WINDOW_UPDATE,
    StreamFaultError,
    frame,
)
from drivetrain.serve.transport.head import Head

if TYPE_CHECKING:
    from drivetrain.serve.transport.http2 import Connection

STREAM_WINDOW = 1 << 20
"""What a client may send on a stream before more is granted."""


class Stream:
    """What all streams have.

    Attributes:
        connection: where it runs; None once it is closed.
        number: its identifier.
        head: the request.
        opened: ``time.monotonic()`` at its head.
        ended: whether the client has sent all.
        window: bytes that the client takes; below 0 after a change of its settings.
        blocked_since: ``time.monotonic()`` from which something waits for a window; inf if
            nothing does.
    """

    __slots__ = (
        "_ending",
        "_granting",
        "_held",
        "_outgoing",
        "_trailers",
        "blocked_since",
        "connection",
        "ended",
        "head",
        "number",
        "opened",
        "window",
    )

    def __init__(self, connection: "Connection", number: int, head: Head, opened: float) -> None:
        self.connection: Connection | None = connection
        self.number = number
        self.head = head
        self.opened = opened
        self.ended = False
        self.window = connection.initial_window
        self.blocked_since = math.inf
        self._outgoing: deque[bytes | memoryview] | None = None
        self._ending = False
        self._trailers = b""
        self._granting = 0
        self._held = 0

    # -- from the client -----------------------------------------------------------------------

    @property
    def client(self) -> str:
        """Whose it is, as :func:`drivetrain.serve.transport.exchange.address` says."""
        return "" if self.connection is None else address(self.connection.transport)

    def received(self, chunk: bytes, size: int, end: bool) -> None:
        """Take content.

        Args:
            chunk: the content.
            size: what it takes of the window, its padding included.
            end: whether the client sends no more.

        Raises:
            StreamFaultError: it is not what the stream may carry.
        """
        raise AssertionError("a kind of stream takes its content")

    def refuse(self, error: RefusedError) -> None:
        """Answer an error of HTTP's in the form of the stream's protocol."""
        raise AssertionError("a kind of stream says how it refuses")

    def trailed(self) -> None:
        """The client's trailers have come: it sends no more."""
        self.received(b"", 0, True)

    def gone(self) -> None:
        """The stream has ended before its answer: reset, or with its connection."""

    def overdue(self, now: float, seconds: float) -> None:
        """End what the client takes too long for; asked about once a second."""
        if self.blocked_since + seconds < now:
            self.reset(CANCEL)

    def drain(self) -> None:
        """The server ends; what goes on by itself until then needs to do nothing."""

    def widen(self, size: int) -> None:
        """The client takes ``size`` bytes more.

        Raises:
            StreamFaultError: more than a window may be.
        """
        self.window += size
        if self.window > WINDOW_MOST:
            raise StreamFaultError(FLOW_CONTROL_ERROR)
        if self._outgoing:
            self.pump()

    # -- to the client -------------------------------------------------------------------------

    def answer(self, block: bytes, content: bytes, trailers: bytes = b"") -> None:
        """Send the whole of an answer and close the stream.

        Args:
            block: the header block.
            content: may be empty.
            trailers: a header block that comes last; empty for none.
        """
        connection, size = self.connection, len(content)
        assert connection is not None, "a stream that is closed takes no answer"
        if size and (
            size > self.window or size > connection.window or size > connection.frame_bytes
        ):
            self.open_answer(block)
            self._trailers, self._ending = trailers, True
            self.push(content)
            return
        if connection.resized:
            block = connection.with_resize(block)
        number = self.number
        pack = HEAD.pack
        if trailers:
            parts = (
                pack(0, len(block), HEADERS, END_HEADERS, number),
                block,
                pack(size >> 16, size & 0xFFFF, DATA, 0, number),
                content,
                pack(0, len(trailers), HEADERS, END_HEADERS | END_STREAM, number),
                trailers,
            )
        elif size:
            parts = (
                pack(0, len(block), HEADERS, END_HEADERS, number),
                block,
                pack(size >> 16, size & 0xFFFF, DATA, END_STREAM, number),
                content,
            )
        else:
            parts = (pack(0, len(block), HEADERS, END_HEADERS | END_STREAM, number), block)
        self.window -= size
        connection.window -= size
        connection.write(b"".join(parts))
        self._close(connection)

    def open_answer(self, block: bytes) -> None:
        """Send the headers of an answer whose content follows in parts."""
        connection = self.connection
        assert connection is not None
        block = connection.with_resize(block)
        connection.write(frame(HEADERS, END_HEADERS, self.number, block))

    def push(self, content: bytes) -> None:
        """Send a part of an answer as soon as the windows let it."""
        if self._outgoing is None:
            self._outgoing = deque()
        self._outgoing.append(memoryview(content))
        if len(self._outgoing) == 1:
            self.pump()

    def end_answer(self, trailers: bytes) -> None:
        """Send no more than what waits, and after it the trailers, of which there are some."""
        assert trailers, "what ended with its content would have said so by then"
        self._trailers, self._ending = trailers, True
        self.pump()

    def pump(self) -> None:
        """Send what the windows let, then the trailers if nothing else is to come."""
        connection, outgoing = self.connection, self._outgoing
        if connection is None:
            return
        sent = False
        while outgoing:
            part = outgoing[0]
            size = len(part)
            room = min(self.window, connection.window, connection.frame_bytes)
            if room <= 0 or connection.congested:
                if sent or self.blocked_since == math.inf:
                    self.blocked_since = monotonic()
                connection.blocked[self.number] = self
                return
            if room < size:
                part, outgoing[0] = part[:room], part[room:]
                size = room
            else:
                outgoing.popleft()
            self.window -= size
            connection.window -= size
            last = self._ending and not outgoing and not self._trailers
            connection.write(frame(DATA, END_STREAM if last else 0, self.number, bytes(part)))
            sent = True
        self.blocked_since = math.inf
        connection.blocked.pop(self.number, None)
        if self._ending:
            if self._trailers:
                flags = END_HEADERS | END_STREAM
                block = connection.with_resize(self._trailers)
                connection.write(frame(HEADERS, flags, self.number, block))
            self._close(connection)

    def grant(self, size: int) -> None:
        """Let the client send ``size`` bytes more; said when it is worth a frame."""
        self._granting += size
        if self._granting >= STREAM_WINDOW // 2 and self.connection is not None:
            self.connection.write(
                frame(WINDOW_UPDATE, 0, self.number, LONG.pack(self._granting))
            )  # fmt: skip
            self._granting = 0

    def reset(self, code: int) -> None:
        """End the stream at once."""
        connection = self.connection
        if connection is not None:
            connection.write_reset(self.number, code, expect_more=not self.ended)
            self._leave(connection)
            self.gone()

    def hold(self, size: int) -> None:
        """Count content that is held until the stream closes, or until it is let go by -size.

        Raises:
            RefusedError: the server holds as much as it may.
        """
        assert self.connection is not None
        http = self.connection.http
        self._held += size
        http.buffered += size
        if size > 0 and http.buffered > http.limits.buffered_bytes:
            raise RefusedError(
                503, "the server holds as many bytes of requests as it may; try again."
            )

    def lost(self) -> None:
        """The client or the connection has ended it."""
        if self.connection is not None:
            self._leave(self.connection)
            self.gone()

    def _close(self, connection: "Connection") -> None:
        """All is sent: half-closed for this server, and closed if the client has sent all."""
        if not self.ended:
            connection.write_reset(self.number, NO_ERROR, expect_more=True)
        self._leave(connection)

    def _leave(self, connection: "Connection") -> None:
        self.connection = None
        self._outgoing = None
        connection.http.buffered -= self._held
        connection.left(self)
