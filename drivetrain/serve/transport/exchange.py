"""One request and its answer, whatever protocol brought it."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from time import monotonic

import msgspec

JSON = b"application/json"
NOT_MANAGED = (
    "found on a port that serves only, allowed: on the management port, which "
    "`[serve] management_port` opens."
)
"""The end of an error for who would manage where that is not allowed."""


RETRY = b"Retry-After: 1\r\n"
"""When a client that was sent away should ask again."""


class RefusedError(Exception):
    """A request that is answered with an error and, where it breaks the framing, a close.

    Args:
        status: of HTTP.
        message: what was found and what is allowed.
        extra: further header lines, each with its CRLF; of 503 :data:`RETRY` unless given.
    """

    def __init__(self, status: int, message: str, extra: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.extra = extra or (RETRY if status == 503 else b"")


class Exchange(ABC):
    """One request and the place of its answer.

    Attributes:
        method: such as ``b"POST"``; gRPC is POST.
        target: path and query.
        headers: names in lower case; only those that mean something to the server.
        body: the whole content; of a gRPC call the message, out of its frame.
        managed: whether it came in where managing is allowed.
        received: ``time.monotonic()`` at the request's end.
        deadline: ``time.monotonic()`` after which nobody wants the answer; None if nothing was
            said of it.
        on_gone: called when the client has gone before its answer.
    """

    __slots__ = (
        "body",
        "deadline",
        "headers",
        "managed",
        "method",
        "on_gone",
        "received",
        "target",
    )

    missing = 404
    """The status of a target that there is not."""

    def __init__(
        self, method: bytes, target: bytes, headers: Mapping[bytes, bytes], managed: bool = False
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body: bytes | bytearray = b""
        self.managed = managed
        self.received = monotonic()
        self.deadline: float | None = None
        self.on_gone: Callable[[], None] | None = None

    @abstractmethod
    def respond(
        self, status: int, body: bytes = b"", kind: bytes = JSON, extra: bytes = b""
    ) -> None:
        """Answer, once.

        Args:
            status: the HTTP status code.
            body: the content; a HEAD request gets its length only.
            kind: the content type.
            extra: further header lines, each with its CRLF.
        """

    def refuse(self, status: int, message: str, extra: bytes = b"") -> int:
        """Answer an error, as ``{"error": message}`` where the protocol has no other form.

        Returns:
            The bytes of the content.
        """
        body = error_body(message)
        self.respond(status, body, JSON, extra)
        return len(body)

    @property
    def client(self) -> str:
        """Whose request it is, as :func:`address` says; empty where that is not known."""
        return ""

    @property
    @abstractmethod
    def answered(self) -> bool:
        """Whether there is an answer."""


def address(transport: asyncio.BaseTransport | None) -> str:
    """Where a connection comes from, such as ``10.0.0.7:51234`` or ``[::1]:51234``."""
    found = None if transport is None else transport.get_extra_info("peername")
    if not found or len(found) < 2:  # it has gone, or has no port
        return ""
    host, port = found[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def error_body(message: str) -> bytes:
    """The JSON of an error."""
    return msgspec.json.encode({"error": message})
