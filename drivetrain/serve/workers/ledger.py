"""What all processes of a server agree on: changed by any one of them, applied by every one."""

import fcntl
import logging
import os
import tempfile
import time
from asyncio import AbstractEventLoop, Event, Task, get_running_loop, wait_for
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any

import msgspec

from drivetrain.serve.transport.exchange import RefusedError
from drivetrain.serve.workers.board import Board

log = logging.getLogger("drivetrain.serve")

State = Mapping[str, Any]
"""What is agreed on, as JSON has it."""
Failures = Mapping[str, str]
"""What a process could not apply, by name, and why."""

_LOCK_SECONDS = 0.5
_LOCK_PAUSE = 0.002


class Ledger:
    """A state with a version, in memory that processes share, and how far each has applied it.

    Made before the processes are forked; it survives each of them. A change is written under a
    lock that the kernel releases when its holder dies, into the half of a :class:`Board` that
    nobody reads, so that a process that is killed in the middle leaves the state before.

    Args:
        seats: how many processes may have a part in it.
        state: what is agreed on at first, as version 0.
    """

    def __init__(self, seats: int, state: State) -> None:
        self.seats = seats
        self._first = state
        self._agreed = Board(1)
        self._applied = Board(seats)
        self._lock = _lock_file()
        self._bells = [_bell() for _ in range(seats)]

    def read(self) -> tuple[int, State]:
        """The version and the state."""
        text = self._agreed.read(0)
        return msgspec.msgpack.decode(text, type=tuple[int, dict[str, Any]]) if text else (
            0,
            self._first,
        )  # fmt: skip

    def change(self, alter: Callable[[State], State]) -> int:
        """Put ``alter(state)`` in the place of the state; gives its version.

        Raises:
            ValueError: ``alter`` refuses the change, or the state would be too long.
            RefusedError: another process has held the lock for too long.
        """
        with self._locked():
            version, state = self.read()
            after = alter(state)
            self._agreed.write(0, msgspec.msgpack.encode((version + 1, after)))
        self.ring()
        return version + 1

    # -- who has a part in it ------------------------------------------------------------------

    def join(self, seat: int) -> None:
        """From now on a change waits for this seat."""
        self._applied.take(seat, True)

    def leave(self, seat: int) -> None:
        """The process of this seat has ended, or is about to."""
        self._applied.take(seat, False)
        self.ring()

    def applied(self, seat: int, version: int, failures: Failures) -> None:
        """Say what the process of this seat has applied, and what of it failed."""
        shown = {name: text[:2000] for name, text in failures.items()}
        self._applied.write(seat, msgspec.msgpack.encode((version, shown)))
        self.ring()

    def behind(self, version: int) -> list[int]:
        """The seats that have a part in it and have not applied this version."""
        live = filter(self._applied.live, range(self.seats))
        return [seat for seat in live if self._said(seat)[0] < version]

    def failures(self) -> dict[int, Failures]:
        """What each seat could not apply of the newest version that it knows."""
        live = filter(self._applied.live, range(self.seats))
        return {seat: self._said(seat)[1] for seat in live}

    def _said(self, seat: int) -> tuple[int, Failures]:
        text = self._applied.read(seat)
        return msgspec.msgpack.decode(text, type=tuple[int, dict[str, str]]) if text else (-1, {})

    # -- how they know -------------------------------------------------------------------------

    def ring(self) -> None:
        """Wake every process that listens."""
        for _, rings in self._bells:
            with suppress(BlockingIOError):  # it will wake for those before
                os.write(rings, b"\0")

    def bell(self, seat: int) -> int:
        """A file descriptor that becomes readable when something has changed."""
        return self._bells[seat][0]

    def hush(self, seat: int) -> None:
        """Take what has been rung."""
        with suppress(BlockingIOError):
            while len(os.read(self.bell(seat), 4096)) == 4096:
                pass

    def close(self) -> None:
        """Give back what this process holds of it."""
        self._lock.close()
        for ends in self._bells:
            for end in ends:
                os.close(end)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A POSIX lock belongs to a process and dies with it, also when the file came by a fork.
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > end:  # stopped while it wrote, which takes microseconds
                    raise RefusedError(503, "another worker holds the lock of changes.") from None
                time.sleep(_LOCK_PAUSE)
        try:
            yield
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)


def _lock_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("drivetrain-ledger"), "wb")
    return tempfile.TemporaryFile()


def _bell() -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends


class Follower:
    """A process' part in a ledger: it applies each change, and waits until all have.

    Every method is called on the loop's thread.

    Args:
        ledger: what is agreed on.
        seat: this process' place in it.
        apply: makes the state so in this process; gives what failed.
    """

    def __init__(
        self, ledger: Ledger, seat: int, apply: Callable[[State], Awaitable[Failures]]
    ) -> None:
        self.ledger = ledger
        self._seat = seat
        self._apply = apply
        self._changed = Event()
        self._version = -1
        self._loop: AbstractEventLoop | None = None
        self._task: Task[None] | None = None

    async def begin(self) -> None:
        """Apply the state and follow it from now on; when this returns nothing is missed."""
        await self._catch_up()
        # Who changes the state writes first and asks who has a part in it then: either it waits
        # for this process, or this process finds the change when it looks again.
        self.ledger.join(self._seat)
        await self._catch_up()
        self._loop = get_running_loop()
        self._loop.add_reader(self.ledger.bell(self._seat), self._rung)
        self._task = self._loop.create_task(self._follow())

    def end(self) -> None:
        """Have no part in it any more."""
        self.ledger.leave(self._seat)
        if self._loop is not None:
            self._loop.remove_reader(self.ledger.bell(self._seat))
        if self._task is not None:
            self._task.cancel()

    async def change(self, alter: Callable[[State], State], seconds: float) -> dict[int, Failures]:
        """Change the state, and wait until every process has applied it.

        Returns:
            What each process could not apply, by its seat.

        Raises:
            ValueError: ``alter`` refuses the change.
            RefusedError: 503, some have not applied it within ``seconds``; it names them. The
                change stands, and they will apply it.
        """
        version = self.ledger.change(alter)
        end = time.monotonic() + seconds
        while True:
            changed = self._changed
            behind = self.ledger.behind(version)
            if not behind:
                return self.ledger.failures()
            try:
                await wait_for(changed.wait(), end - time.monotonic())
            except TimeoutError:
                workers = ", ".join(map(str, behind))
                raise RefusedError(
                    503,
                    f"the change is made, and worker {workers} has not applied it within "
                    f"{seconds:g} s.",
                ) from None

    def _rung(self) -> None:
        self.ledger.hush(self._seat)
        changed, self._changed = self._changed, Event()
        changed.set()

    async def _follow(self) -> None:
        while True:
            changed = self._changed
            try:
                await self._catch_up()
            except Exception:
                log.exception("worker %d could not apply a change", self._seat)
            await changed.wait()

    async def _catch_up(self) -> None:
        while True:
            version, state = self.ledger.read()
            if version == self._version:
                return
            failures = await self._apply(state)
            self._version = version
            self.ledger.applied(self._seat, version, failures)
