"""What a worker knows of its place beside the others, and what it tells the supervisor."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from drivetrain.core.errors import wrong
from drivetrain.serve.workers.board import Board

FAILED = 70
"""The exit status of a worker that did not end in order."""


def seats_of(workers: int) -> int:
    """How many processes serve.

    Args:
        workers: as asked for; 0 is one a core.

    Raises:
        ValueError: there cannot be so many.
    """
    if workers < 0:
        raise wrong("workers", workers, "a number of processes, or 0 for one a core")
    if workers == 1 or sys.platform != "linux":
        if workers > 1:
            raise wrong("workers", workers, f"1 on {sys.platform}")
        return 1
    return workers or len(os.sched_getaffinity(0))


@dataclass
class Seat:
    """What a worker knows of its place.

    Attributes:
        number: from 0.
        listener: its own, bound to the port that all share.
        board: where every worker writes what it has counted.
        known: for each alias the digest and the path of a bundle that was served well; what an
            alias means when a worker is replaced may be what the others have refused.
    """

    number: int
    listener: socket.socket
    board: Board
    known: dict[str, tuple[str, str]]
    tells: int
    lives: int

    def tell(self, **what: Any) -> None:
        """Tell the supervisor, unless it has gone."""
        line = json.dumps({"seat": self.number, **what}).encode() + b"\n"
        with contextlib.suppress(OSError):
            os.write(self.tells, line)  # whole, for it is shorter than a pipe's PIPE_BUF

    def loads(self, name: str) -> None:
        """Say what is loaded now, before requests are taken."""
        self.tell(loads=name)

    def ready(self) -> None:
        """Say that requests are taken."""
        self.board.take(self.number, True)
        self.tell(ready=True)

    def leave(self) -> None:
        """Say that connections should go to the others; those that come still are taken."""
        self.tell(leaves=True)

    def hang(self, why: str) -> None:
        """Say that this process can only be killed."""
        self.tell(hangs=why)

    def left(self) -> None:
        """Say that no more connections are taken."""
        self.tell(left=True)

    def follow(self, end: Callable[[], object], seconds: float) -> None:
        """End with the supervisor: ``end`` is called when it has gone, however that came.

        Args:
            end: begins an orderly end.
            seconds: what an orderly end takes at most; the process ends then, even in a run of
                the graph that never returns.
        """

        def wait() -> None:
            while os.read(self.lives, 1):  # nothing is ever written: it ends when all writers have
                pass
            end()
            time.sleep(seconds)
            os._exit(FAILED)

        threading.Thread(target=wait, name="drivetrain-follow", daemon=True).start()
