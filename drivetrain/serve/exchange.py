"""One request and its answer, as a connection hands them over."""

from collections.abc import Callable
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from drivetrain.serve.http import Connection

JSON = b"application/json"


class RefusedError(Exception):
    """A request that is answered with an error and, where it breaks the framing, a close."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Exchange:
    """One request and the place of its answer."""

    __slots__ = (
        "_answer",
        "_connection",
        "body",
        "headers",
        "keep",
        "method",
        "on_gone",
        "received",
        "target",
    )

    def __init__(self, connection: "Connection", method: bytes, target: bytes) -> None:
        self._connection = connection
        self._answer: tuple[int, bytes, bytes, bytes] | None = None
        self.method = method
        self.target = target
        self.headers: dict[bytes, bytes] = connection.headers
        self.body: bytes | bytearray = b""
        self.keep = True
        self.received = monotonic()
        self.on_gone: Callable[[], None] | None = None
        """Called when the client has gone before its answer."""

    def respond(
        self, status: int, body: bytes = b"", kind: bytes = JSON, extra: bytes = b""
    ) -> None:
        """Answer, once; it is written when all earlier requests of the connection have theirs.

        Args:
            status: the status code.
            body: the content; a HEAD request gets its length only.
            kind: the content type.
            extra: further header lines, each with its CRLF.
        """
        assert self._answer is None, "an exchange has one answer"
        self._answer = (status, body, kind, extra)
        self._connection.flush()

    def refuse(self, status: int, message: str, extra: bytes = b"") -> None:
        """Answer with ``{"error": message}``."""
        self.respond(status, error_body(message), JSON, extra)

    @property
    def answered(self) -> bool:
        """Whether there is an answer to write."""
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


def error_body(message: str) -> bytes:
    """The JSON of an error."""
    return msgspec.json.encode({"error": message})


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()


_STATUS_LINES = {status.value: _status_line(status) for status in HTTPStatus}
