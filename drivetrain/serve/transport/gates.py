"""Targets that take no requests for a while: who asks is told so at the head, and not too often.

A request that is sent away still costs its bytes and its answer. Where that is all that happens, a
flood of them takes the time of those that are taken. So there are so many refusals a second and no
more: a connection beyond them is not read until the target opens, or its turn to be refused comes.
Its next request stays with the client, held there by TCP's own flow control.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from drivetrain.serve.transport.exchange import RefusedError, error_body

REFUSALS_A_SECOND = 2000.0
"""At about 20 µs each, most of them the kernel's, they leave 24 of 25 parts of a core to the
others, and nobody of a thousand connections waits much longer than half a second for his."""
_AT_ONCE = 0.25
"""Seconds whose refusals may come in one moment."""
_LET_IN = 16
"""Connections that are read again in one turn of the loop: the target may close behind them."""


class Held(Protocol):
    """A connection that can be left unread."""

    def hold(self) -> None:
        """Read no more."""
        ...

    def let_in(self) -> None:
        """Read on."""
        ...


class Gate:
    """One target's.

    Args:
        gates: those of the process.
        target: path and query.
        tell: told of each request that was sent away, with its connection's transport.

    Attributes:
        error: what those are told who are sent away.
        answer: the same as bytes of HTTP/1.1.
    """

    __slots__ = ("_gates", "_held", "answer", "closed", "error", "target", "tell")

    def __init__(
        self, gates: "Gates", target: bytes, tell: Callable[[asyncio.BaseTransport], object]
    ) -> None:
        self._gates = gates
        self._held: deque[Held] = deque()
        self.target = target
        self.tell = tell
        self.closed = False
        self.error = RefusedError(503, "")
        self.answer = b""

    def close(self, why: str) -> None:
        """Send away who asks, with 503 and this reason."""
        self.closed = True
        self.error = RefusedError(503, why)
        body = error_body(why)
        self.answer = (
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n%b\r\n%b" % (len(body), self.error.extra, body)
        )
        self._gates.closed[self.target] = self

    def open(self) -> None:
        """Take requests again, first of those who were left unread."""
        if self.closed:
            self.closed = False
            del self._gates.closed[self.target]
            self._let_some_in()

    def turn_away(self, connection: Held, transport: asyncio.BaseTransport) -> None:
        """Count a request that was sent away; its connection may have to wait for its next one."""
        self.tell(transport)
        if not self._gates.spend():
            self._held.append(connection)
            connection.hold()

    def _let_some_in(self) -> None:
        """Read those on who were left unread, a few at a time, until the gate is closed again."""
        if self._held and not self.closed:
            self.let_in(_LET_IN)
            asyncio.get_running_loop().call_soon(self._let_some_in)

    def let_in(self, most: int) -> int:
        """Read some connections on, the longest unread first; gives how many."""
        count = min(most, len(self._held))
        for _ in range(count):
            self._held.popleft().let_in()
        return count


class Gates:
    """The closed ones of a process, and how often they may say no.

    Attributes:
        closed: by their targets.
    """

    def __init__(self) -> None:
        self.closed: dict[bytes, Gate] = {}
        self._spare = REFUSALS_A_SECOND * _AT_ONCE
        self._ticked = monotonic()
        self._draining = False

    def spend(self) -> bool:
        """Count a refusal; whether there may be another."""
        self._spare -= 1.0
        return self._spare > 0.0 or self._draining

    def tick(self) -> None:
        """Let more be refused, first those who wait for it; called a few times a second."""
        now = monotonic()
        seconds, self._ticked = min(now - self._ticked, _AT_ONCE), now
        most = REFUSALS_A_SECOND * _AT_ONCE
        self._spare = min(max(self._spare, 0.0) + REFUSALS_A_SECOND * seconds, most)
        most = int(self._spare)
        for gate in list(self.closed.values()):
            most -= gate.let_in(most)

    def let_all_in(self) -> None:
        """Read all connections on: the server ends, and answers what was sent."""
        self._draining = True
        for gate in list(self.closed.values()):
            gate.let_in(1 << 30)
