"""What all connections of a process share: the limits of a client, the clock, the drain."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from drivetrain.serve.transport.exchange import Exchange, RefusedError
from drivetrain.serve.transport.gates import Gates
from drivetrain.serve.transport.repeated import RepeatedHead

if TYPE_CHECKING:
    from drivetrain.serve.transport.grpc_stream import GrpcStream

_LINGER_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """What one client may take of the server.

    Attributes:
        body_bytes: the longest body of a request, as it is sent and as it was before it was
            compressed; a longer one is refused before it is read.
        buffered_bytes: bodies that are being received or have no answer yet, all connections
            together.
        header_bytes: request line and headers together.
        connections: open at once; the longest idle one makes way for a new one.
        pipeline: requests of one connection that wait for their answers, over HTTP/1.1.
        streams: the same over HTTP/2.
        header_seconds: from a request's first byte to the end of its headers.
        body_seconds: from there to the end of its body, and for a client to take its answer.
        idle_seconds: between requests.
    """

    body_bytes: int = 16 << 20
    buffered_bytes: int = 256 << 20
    header_bytes: int = 16 << 10
    connections: int = 4096
    pipeline: int = 64
    streams: int = 256
    header_seconds: float = 10.0
    body_seconds: float = 10.0
    idle_seconds: float = 75.0


Judge = Callable[[bytes, bytes, Mapping[bytes, bytes], bool], RefusedError | None]


class Refused(Protocol):
    """Is told of each request that never became one."""

    def __call__(
        self, status: int, client: str, method: bytes = b"", target: bytes = b"", /
    ) -> None: ...


class Peer(Protocol):
    """A connection, whatever it speaks, as :class:`Http` sees it.

    Attributes:
        idle_since: ``time.monotonic()`` at which it came, or had its last request answered.
        deadline: the same at which what is awaited is overdue.
        write_deadline: the same of a client that does not take its answers.
    """

    idle_since: float
    deadline: float
    write_deadline: float

    @property
    def idle(self) -> bool:
        """No request is under way."""
        ...

    @property
    def ending(self) -> bool:
        """Its last answer is written."""
        ...

    def expire(self) -> None:
        """A deadline has passed."""
        ...

    def drain(self) -> None:
        """The server ends: say so, where the protocol has a word for it."""
        ...

    def close(self) -> None:
        """Close after what is written has gone out."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


class Http:
    """All connections of a listener, and what they share.

    Args:
        application: gets each whole request and sees to it that it is answered.
        limits: what a client may take.
        refused: told the status and the client of each request that never became one, and its
            method and target as far as they are known.
        streams: for each target of gRPC that streams, who gets its calls. It may change at any
            time.
        judge: asked about the head of each request before a byte of its content is kept: method,
            target, headers, and whether it came in where managing is allowed; gives the error
            that it is answered with, or None. A connection remembers what it said of a head.
        gates: the targets that take no requests for a while.
    """

    def __init__(
        self,
        application: Callable[[Exchange], None],
        limits: HttpLimits,
        refused: Refused = lambda status, client, method=b"", target=b"": None,
        streams: "Mapping[bytes, Callable[[GrpcStream], None]] | None" = None,
        judge: Judge = lambda method, target, headers, managed: None,
        gates: Gates | None = None,
    ) -> None:
        self.application = application
        self.judge = judge
        self.gates = gates or Gates()
        self.streams = {} if streams is None else streams
        self.refused = refused
        self.limits = limits
        self.heads: dict[bool, RepeatedHead] = {}
        """What came last over HTTP/1.1, where managing is allowed and where it is not: clients of
        one kind send the same, and a new connection's need not be parsed again."""
        self.connections: set[Peer] = set()
        self.buffered = 0
        self.draining = False
        self.date = b""
        self.tick()

    def tick(self) -> None:
        """Close what has run out of time; called a few times a second."""
        self.date = f"Date: {formatdate(usegmt=True)}\r\n".encode()
        now = monotonic()
        for connection in list(self.connections):
            if connection.deadline < now or connection.write_deadline < now:
                connection.expire()
        self.gates.tick()

    def admit(self, connection: Peer) -> bool:
        """Take a new connection, if need be in the place of the longest idle one."""
        if len(self.connections) >= self.limits.connections:
            idle = [c for c in self.connections if c.idle]
            if not idle:
                return False
            min(idle, key=lambda c: c.idle_since).close()
        self.connections.add(connection)
        return True

    @property
    def unanswered(self) -> int:
        """Requests that came in, wholly or in part, and have no answer yet."""
        return sum(not c.idle for c in self.connections if not c.ending)

    def last_deadline(self, transport: asyncio.WriteTransport) -> float:
        """When a client must have taken what is written and have gone, if nothing else follows."""
        untaken = transport.get_write_buffer_size()
        return monotonic() + (self.limits.body_seconds if untaken else 0.0) + _LINGER_SECONDS

    def drain(self) -> None:
        """Take what is under way, and tell the clients to go elsewhere."""
        self.draining = True
        self.gates.let_all_in()
        for connection in list(self.connections):
            connection.drain()

    def close_idle(self) -> None:
        """Close every connection that has no request under way."""
        for connection in [c for c in self.connections if c.idle]:
            connection.close()

    def abort(self) -> None:
        """Close every connection at once."""
        for connection in list(self.connections):
            connection.abort()
