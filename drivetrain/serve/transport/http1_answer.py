"""A request of an HTTP/1.1 connection and the place of its answer, and that answer's bytes."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING

from drivetrain.serve.native import compiled
from drivetrain.serve.transport.exchange import JSON, Exchange, address

if TYPE_CHECKING:
    from drivetrain.serve.transport.http1 import Connection

Answer = tuple[bytes, bytes, bytes, bytes, int]
"""The line of its status, its kind, further header lines, the content, and the length that is told
of it: one that HEAD asks for goes without its content."""


class Http1Exchange(Exchange):
    """A request of an HTTP/1.1 connection; answers go out in the order of the requests."""

    __slots__ = ("_connection", "answer", "held", "keep")

    def __init__(
        self,
        connection: "Connection",
        method: bytes,
        target: bytes,
        headers: Mapping[bytes, bytes],
        body: bytes | bytearray = b"",
    ) -> None:
        self.method = method  # as Exchange does, for which every request would call
        self.target = target
        self.headers = headers
        self.body = body
        self.managed = connection.managed
        self.received = monotonic()
        self.deadline = None
        self.on_gone = None
        self._connection = connection
        self.answer: Answer | None = None
        self.held = len(body)
        """Bytes that it came in, however many its body is made of them."""
        self.keep = True

    def respond(
        self, status: int, body: bytes = b"", kind: bytes = JSON, extra: bytes = b""
    ) -> None:
        assert self.answer is None, "an exchange has one answer"
        content = b"" if self.method == b"HEAD" else body
        self.answer = (_STATUS_LINES[status], kind, extra, content, len(body))
        self.on_gone = None  # it refers to who answers, and that to this: no work for the collector
        self._connection.flush()

    @property
    def client(self) -> str:
        return address(self._connection.transport)

    @property
    def answered(self) -> bool:
        return self.answer is not None


def wire_in_python(
    status: bytes, date: bytes, kind: bytes, extra: bytes, content: bytes, length: int
) -> bytes:
    """An answer's bytes.

    Args:
        status: its first line.
        date: a header line, as ``extra`` may be several.
        kind: the content type.
        extra: further header lines.
        content: what follows the header.
        length: what the header says of it.
    """
    return b"%b%bContent-Type: %b\r\nContent-Length: %d\r\n%b\r\n%b" % (
        *(status, date, kind),
        *(length, extra, content),
    )


wire: Callable[[bytes, bytes, bytes, bytes, bytes, int], bytes] = (
    wire_in_python if compiled is None else compiled.wire
)
"""The same, by the compiled part where it is there."""


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()


_STATUS_LINES = {status.value: _status_line(status) for status in HTTPStatus}
CONTINUE = _STATUS_LINES[100]
INTERIM = CONTINUE + b"\r\n"
"""All that a client is told which asks before it sends its content."""
