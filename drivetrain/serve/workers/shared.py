"""What the processes of a server share from before they are forked, so that it can be managed."""

import socket

from drivetrain.serve.transport.listen import bind
from drivetrain.serve.workers import repository, shared_memory


class Shared:
    """The management port, if there is one, and what all processes agree on.

    One listener is enough for the port: every process takes connections from its queue, and none
    is lost with a process that dies. Balance does not matter there.

    Args:
        host: the address to listen at.
        port: the management port; 0 takes a free one, None opens none.
        seats: how many processes there are.

    Raises:
        OSError: the address is taken, or is none of this machine; names it.
    """

    def __init__(self, host: str, port: int | None, seats: int) -> None:
        self.listener: socket.socket | None = None if port is None else bind(host, port)
        self.repository = repository.agreement(seats)
        self.memory = shared_memory.agreement(seats)

    @property
    def port(self) -> int | None:
        """The management port; None if there is none."""
        return None if self.listener is None else self.listener.getsockname()[1]

    def left(self, seat: int) -> None:
        """The process of a seat has ended: nobody waits for it any more."""
        for ledger in (self.repository, self.memory):
            ledger.leave(seat)

    def close(self) -> None:
        """Give back what this process holds of it."""
        if self.listener is not None:
            self.listener.close()
        for ledger in (self.repository, self.memory):
            ledger.close()
