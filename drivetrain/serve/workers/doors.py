"""Where a serving process takes connections, and how it stops: nobody who came in is sent away."""

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from drivetrain.serve.transport.http import Http
from drivetrain.serve.transport.listen import BACKLOG, HANDSHAKE_SECONDS, hold_off, silence, take
from drivetrain.serve.transport.opening import Opening
from drivetrain.serve.workers.seat import Seat

_STEER_SECONDS = 0.02
"""What the supervisor has to steer connections away from a worker that leaves."""
_SETTLE_SECONDS = 0.25
"""How long a draining server waits for requests that were sent before the client could know."""


@dataclass(frozen=True, eq=False)
class _Door:
    """One of them.

    Attributes:
        server: takes connections.
        listener: holds them until then.
        managed: whether managing is allowed here.
        common: whether other processes take from the same listener.
    """

    server: asyncio.AbstractServer
    listener: socket.socket
    managed: bool
    common: bool


class Doors:
    """The listeners of one process.

    Args:
        http: what all their connections share.
        secure: TLS, as :attr:`drivetrain.serve.transport.tls.Tls.options` has it; empty is none.
        seat: of a worker; None in a process by itself.
    """

    def __init__(self, http: Http, secure: Mapping[str, Any], seat: Seat | None) -> None:
        self._http = http
        self._secure = secure
        self._seat = seat
        self._doors: list[_Door] = []

    async def open(self, listener: socket.socket, *, managed: bool = False) -> None:
        """Take connections.

        Args:
            listener: a bound socket. One for managing is common to all workers.
            managed: whether managing is allowed here.
        """
        opening = partial(Opening, self._http, managed)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(opening, sock=listener, backlog=BACKLOG, **self._secure)
        self._doors.append(_Door(server, listener, managed, managed and self._seat is not None))

    async def drain(self, seconds: float) -> int:
        """Take no more, and answer what was accepted.

        Returns:
            How many requests were left without an answer after ``seconds``.
        """
        http, loop = self._http, asyncio.get_running_loop()
        end = loop.time() + seconds
        http.drain()
        for connection, managed in await self._leave():
            connection.setblocking(False)
            opening = partial(Opening, http, managed)
            begun = loop.create_task(
                loop.connect_accepted_socket(opening, connection, **self._secure)
            )
            begun.add_done_callback(_let_fail)
        settled = loop.time() + min(_SETTLE_SECONDS, seconds / 2)
        while loop.time() < end and (http.unanswered or loop.time() < settled):
            await asyncio.sleep(0.01)
        left = http.unanswered
        http.close_idle()
        while loop.time() < end and http.connections:
            await asyncio.sleep(0.01)
        return left

    async def _leave(self) -> list[tuple[socket.socket, bool]]:
        """Take no more connections; gives those that had come and that nobody had taken, and
        whether each came in where managing is allowed."""
        seat = self._seat
        if seat is not None:
            seat.leave()
            await asyncio.sleep(_STEER_SECONDS)
        # What others take connections from too is left to them as it is.
        held = {door for door in self._doors if not door.common and hold_off(door.listener)}
        if held:
            await asyncio.sleep(HANDSHAKE_SECONDS)
        accepted: list[tuple[socket.socket, bool]] = []
        for door in self._doors:
            with door.listener.dup() as last:
                door.server.close()
                # The supervisor holds a seat's listener too: what comes yet waits for a successor.
                found = take(last) if door in held or seat is not None else silence(last)
            accepted += [(connection, door.managed) for connection in found]
        if seat is not None:
            seat.left()
        return accepted


def _let_fail(begun: "asyncio.Task[object]") -> None:
    """A handshake that failed is its client's matter."""
    if not begun.cancelled():
        begun.exception()
