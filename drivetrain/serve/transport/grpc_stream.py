"""Calls of gRPC's streaming methods: messages both ways, each side no faster than the other.

The server's :class:`drivetrain.serve.transport.http.Http` has a mapping ``streams`` from targets
(``b"/package.Service/Method"``) to callables. A call for such a target makes a
:class:`GrpcStream`, and the callable gets it at once, before any message; it sets ``on_message``
and what else it wants to know, or refuses the call by :meth:`GrpcStream.finish`.
"""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from drivetrain.serve.transport.exchange import RefusedError
from drivetrain.serve.transport.frames import FLOW_CONTROL_ERROR, StreamFaultError
from drivetrain.serve.transport.grpc import (
    HEADERS,
    PREFIX_BYTES,
    GrpcStatus,
    decompress,
    framed,
    of_http,
    trailers,
)
from drivetrain.serve.transport.head import Head
from drivetrain.serve.transport.streams import STREAM_WINDOW, Stream

if TYPE_CHECKING:
    from drivetrain.serve.transport.http2 import Connection

log = logging.getLogger("drivetrain.serve")

MESSAGES = 16
"""Messages of one call that the application has and has not released yet."""
_OUTGOING_BYTES = 1 << 20
"""Of messages that the client does not take: beyond it none are delivered that would make more."""


def _nothing() -> None:
    """What happens where the application does not ask."""


class GrpcStream(Stream):
    """One call of a method that streams.

    The application gets at most :data:`MESSAGES` messages until it says by :meth:`release` that
    it is through with one of them; what the client sends beyond that waits, first here up to a
    window, then with the client. No messages come either while the client leaves more than 1 MiB
    of answers untaken, so that an application which answers each message needs no more than that.
    One that sends unasked looks at what :meth:`send` returns, and waits for :attr:`on_room`.

    Attributes:
        on_message: called with each message.
        on_end: called once when the client has sent its last message, after that message.
        on_gone: called when the call is over before :meth:`finish`: cancelled, refused, past its
            deadline, or its connection lost. Nothing that is sent then matters.
        on_room: called when there is room again after :meth:`send` returned False.
        deadline: ``time.monotonic()`` at which the client gives up, or None. The call is then
            ended here, with DEADLINE_EXCEEDED, within a second.
    """

    __slots__ = (
        "_buffer",
        "_delivered",
        "_delivering",
        "_draining",
        "_end_told",
        "_finished",
        "_opened_answer",
        "_taken",
        "_told_full",
        "deadline",
        "managed",
        "on_end",
        "on_gone",
        "on_message",
        "on_room",
    )

    def __init__(self, connection: "Connection", number: int, head: Head, opened: float) -> None:
        super().__init__(connection, number, head, opened)
        self.managed = connection.managed
        self.deadline = None if head.timeout is None else opened + head.timeout
        self.on_message: Callable[[bytes], None] = lambda message: self.release()
        self.on_end: Callable[[], None] = _nothing
        self.on_gone: Callable[[], None] = _nothing
        self.on_room: Callable[[], None] = _nothing
        self._buffer = bytearray()
        self._taken = 0
        """Bytes of the client's window that were used and not granted anew."""
        self._delivered: list[int] = []
        self._delivering = self._draining = self._end_told = self._finished = False
        self._opened_answer = self._told_full = False

    # -- the application's side ----------------------------------------------------------------

    @property
    def target(self) -> bytes:
        """``/package.Service/Method``."""
        return self.head.target

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """The metadata that mean something to the server."""
        return self.head.headers

    @property
    def open(self) -> bool:
        """Whether the call goes on: neither finished nor gone."""
        return self.connection is not None and not self._finished

    def send(self, message: bytes) -> bool:
        """Send a message; of a call that is over it is dropped.

        Returns:
            Whether there is room for more. If not, :attr:`on_room` is called when there is.
        """
        if not self.open:
            return False
        if not self._opened_answer:
            self._opened_answer = True
            self.open_answer(HEADERS)
        self.push(framed(message))
        self._told_full = self._full
        return not self._told_full

    def release(self) -> None:
        """Say that the application is through with the oldest message it has."""
        size = self._delivered.pop(0)
        if self.connection is not None:
            self.hold(-size)
            self._deliver()
            self._end_drained()

    def finish(self, status: int = GrpcStatus.OK, message: str = "", extra: bytes = b"") -> None:
        """End the call, after what was sent; a call that is over already stays as it is.

        Args:
            status: a :class:`drivetrain.serve.transport.grpc.GrpcStatus`.
            message: what went wrong, if anything did.
            extra: trailing metadata, as header lines each with its CRLF.
        """
        if not self.open:
            return
        self._finished = True
        block = trailers(status, message, extra)
        if self._opened_answer:
            self.end_answer(block)
        else:
            self.answer(HEADERS + block, b"")

    # -- the connection's side -----------------------------------------------------------------

    def begin(self, opened: Callable[["GrpcStream"], None], end: bool) -> None:
        """Give the call to the application."""
        self.ended = end
        if self.head.refusal is not None:
            self.refuse(self.head.refusal)
            return
        self._guarded(opened, self)
        self._deliver()

    def received(self, chunk: bytes, size: int, end: bool) -> None:
        self.ended = end
        self._taken += size
        if self._taken + self._granting > STREAM_WINDOW:
            raise StreamFaultError(FLOW_CONTROL_ERROR)
        if self._finished or self._draining:
            self._regrant()
            return
        self._buffer += chunk
        try:
            self.hold(len(chunk))
        except RefusedError as error:
            self.refuse(error)
            return
        self._deliver()

    def refuse(self, error: RefusedError) -> None:
        assert self.connection is not None
        told = self.connection.http.refused
        told(error.status, self.client, self.head.method, self.head.target)
        self._break_off(of_http(error.status), str(error), error.extra)

    def _break_off(self, status: int, message: str, extra: bytes = b"") -> None:
        """End a call that its application has not ended."""
        if self.open:
            self.finish(status, message, extra)
            self.on_gone()

    def overdue(self, now: float, seconds: float) -> None:
        super().overdue(now, seconds)
        if self.deadline is not None and self.deadline < now:
            self._break_off(GrpcStatus.DEADLINE_EXCEEDED, "timeout: the call took longer.")

    def gone(self) -> None:
        if not self._finished:
            self.on_gone()

    def drain(self) -> None:
        """Take no more messages, and end the call when those that came are through."""
        self._draining = True
        self._end_drained()

    def _end_drained(self) -> None:
        if self._draining and not self._delivered:
            message = "the server ends; the call may go on elsewhere."
            self._break_off(GrpcStatus.UNAVAILABLE, message)

    def pump(self) -> None:
        super().pump()
        if self._told_full and not self._full and self.open:
            self._told_full = False
            self._guarded(self.on_room)
        self._deliver()

    @property
    def _full(self) -> bool:
        outgoing = self._outgoing
        return outgoing is not None and sum(map(len, outgoing)) > _OUTGOING_BYTES

    def _deliver(self) -> None:
        """Give the application the messages that it may have, and the client its window back."""
        if self._delivering or not self.open:
            return
        self._delivering = True
        try:
            while self.open and len(self._delivered) < MESSAGES and not self._full:
                message = self._next()
                if message is None:
                    break
                self._guarded(self.on_message, message)
            else:
                return  # what is in the buffer waits, and the client with it
            if self.open:
                self._regrant()
                self._tell_end()
        except RefusedError as error:
            self.refuse(error)
        finally:
            self._delivering = False

    def _next(self) -> bytes | None:
        """The next message out of the buffer, or None until there is a whole one.

        Raises:
            RefusedError: it is too long, or cannot be decompressed.
        """
        assert self.connection is not None
        buffer, most = self._buffer, self.connection.http.limits.body_bytes
        if len(buffer) < PREFIX_BYTES:
            return None
        size = int.from_bytes(buffer[1:PREFIX_BYTES], "big")
        if size > most:
            raise RefusedError(413, f"message: found {size} bytes, allowed: {most}.")
        end = PREFIX_BYTES + size
        if len(buffer) < end:
            return None
        message = bytes(memoryview(buffer)[PREFIX_BYTES:end])
        if buffer[0]:
            coding = self.headers.get(b"grpc-encoding", b"identity")
            message = decompress(buffer[0], message, coding, most)
        del buffer[:end]
        self.hold(len(message) - size - PREFIX_BYTES)
        self._delivered.append(len(message))
        return message

    def _regrant(self) -> None:
        """Give the window back: what was received is with the application, or a part of one."""
        self.grant(self._taken)
        self._taken = 0

    def _tell_end(self) -> None:
        if self.ended and not self._end_told:
            self._end_told = True
            if self._buffer:
                raise RefusedError(400, "messages: found a part of one at the end.")
            self._guarded(self.on_end)

    def _guarded(self, call: Callable[..., None], *given: object) -> None:
        """Call the application; what it fails with ends this call and no other."""
        try:
            call(*given)
        except Exception:
            log.exception("a streaming call failed")
            message = "the server failed on this call; its log says why."
            self._break_off(GrpcStatus.INTERNAL, message)

    def _leave(self, connection: "Connection") -> None:
        self._buffer = bytearray()
        super()._leave(connection)
