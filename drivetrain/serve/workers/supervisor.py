"""Several processes that serve one port: forked, watched, replaced when they die, ended together.

The supervisor serves nothing. It binds a listener for each seat, forks a worker into each seat
before anything has started a thread (ONNX Runtime is first loaded in the worker), and keeps every
listener open: what the kernel has queued for a worker that dies waits for the next one in its
seat. Only what the dead worker had accepted is lost with it. While a seat is empty, or its worker
is about to leave or does not turn, new connections are steered to the others.
"""

import contextlib
import gc
import json
import logging
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from drivetrain.serve.transport.listen import let_in, silence, steer
from drivetrain.serve.workers.board import Board
from drivetrain.serve.workers.seat import FAILED, Seat

log = logging.getLogger("drivetrain.serve")

_STEADY_SECONDS = 10.0
"""A worker that has lived so long is replaced at once, however often that has happened."""
_PAUSES = (0.0, 0.5, 1.0, 2.0, 5.0)
"""Seconds before a worker is replaced, by how many in a row have died young."""
_FORK_PAUSE = 0.5
_LOOK_SECONDS = 1.0
"""Between two looks at whether the workers' loops turn."""
_STILL_SECONDS = 2.0
"""A worker whose loop has not turned for so long gets no new connections until it does."""
_HEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
LOOK = getattr(signal, "SIGUSR1", signal.SIGTERM)
"""Tells a worker to ask its aliases, for another has found something new; where there is no such
signal there is one worker only."""
_FAILURES: dict[str, type[Exception]] = {
    error.__name__: error for error in (ValueError, OSError, ImportError)
}
_TEXT = 600
"""Characters of an error that are told: at six bytes each in JSON, such as for Chinese, the line
fits a pipe's PIPE_BUF of 4096. In two writes the lines of two workers would mix."""


@dataclass
class _Worker:
    number: int
    listener: socket.socket
    pid: int = 0
    born: float = 0.0
    due: float = 0.0
    young_deaths: int = 0
    ready: bool = False
    leaves: bool = False
    left: bool = False
    pulse: int = 0
    still: float = 0.0
    loads: str = ""

    @property
    def open(self) -> bool:
        """Whether it should be given connections."""
        return self.ready and not self.leaves and self.still < _STILL_SECONDS


@dataclass
class _Wires:
    """Both ends of what the processes tell each other."""

    wake_reads: socket.socket
    wake_writes: socket.socket
    told: int
    tells: int
    lives: int
    living: int
    lines: bytes = field(default=b"")

    @classmethod
    def laid(cls) -> "_Wires":
        wake_reads, wake_writes = socket.socketpair()
        wake_reads.setblocking(False)
        wake_writes.setblocking(False)
        told, tells = os.pipe()
        lives, living = os.pipe()
        os.set_blocking(told, False)
        return cls(wake_reads, wake_writes, told, tells, lives, living)

    def cut(self) -> None:
        self.cut_supervisor()
        for end in (self.tells, self.lives):
            os.close(end)

    def cut_supervisor(self) -> None:
        """What a worker must not hold: a pipe lives as long as anyone holds its end."""
        self.wake_reads.close()
        self.wake_writes.close()
        os.close(self.told)
        os.close(self.living)


class Supervisor:
    """Keeps one worker in each seat until it is told to end.

    Args:
        work: serves in a forked process, from ready to end; gives its exit status.
        listeners: bound to one port, one for each seat; closed at the end.
        end_seconds: what the end of a worker takes at most; it is killed then.
        hang_seconds: a worker whose loop does not turn for so long is killed and replaced.
        start_seconds: the same of one that is not ready so long after its start.
        ended: told the seat of each worker that has ended.
    """

    def __init__(
        self,
        work: Callable[[Seat], int],
        listeners: Sequence[socket.socket],
        end_seconds: float,
        hang_seconds: float = math.inf,
        start_seconds: float = math.inf,
        ended: Callable[[int], object] = lambda seat: None,
    ) -> None:
        self._work = work
        self._ended = ended
        self._workers = [_Worker(number, each) for number, each in enumerate(listeners)]
        self._end_seconds = end_seconds
        self._hang_seconds = hang_seconds
        self._start_seconds = start_seconds
        self._looked = time.monotonic()
        self._board = Board(len(listeners))
        self._known: dict[str, tuple[str, str]] = {}
        self._wires = _Wires.laid()
        self._deadline: float | None = None
        self._status = 0
        self._failure: Exception | None = None
        self._begun = False
        self._open: list[int] = []
        self._steers = True

    def run(self, started: Callable[[], object]) -> int:
        """Keep the workers until SIGTERM, SIGINT or :meth:`stop`; SIGHUP is handed on to them.

        A second SIGTERM or SIGINT ends them without their waiting for answers.

        Args:
            started: called when every worker takes requests for the first time.

        Returns:
            0, or 1 if a worker did not end in order.

        Raises:
            Exception: why a worker could not begin to serve, if none has served yet.
        """
        gc.collect()
        gc.freeze()  # a collection in a worker would write to, and so copy, every shared page
        try:
            with self._signals():
                while self._deadline is None or any(worker.pid for worker in self._workers):
                    self._fill()
                    self._heed(self._wait(), started)
                    self._reap()
                    self._look()
        finally:
            gc.unfreeze()
            self._kill(signal.SIGKILL)
            for worker in self._workers:
                if worker.pid:
                    os.waitpid(worker.pid, 0)
                worker.listener.close()
            self._wires.cut()
        if self._failure is not None:
            raise self._failure
        return self._status

    def stop(self) -> None:
        """End as on SIGTERM; from any thread."""
        with contextlib.suppress(OSError):  # it has ended already
            self._wires.wake_writes.send(bytes([signal.SIGTERM]))

    # -- what happens --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals wake the loop, and do nothing else."""
        fd = self._wires.wake_writes.fileno()
        before = [(number, signal.signal(number, lambda *_: None)) for number in _HEEDED]
        wakes = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakes)
            for number, handler in before:
                signal.signal(number, handler)

    def _wait(self) -> list[int]:
        """Wait for something to do; gives the signals that came."""
        now = time.monotonic()
        if self._deadline is not None:
            next_seconds = 0.5
        else:
            dues = [worker.due - now for worker in self._workers if not worker.pid]
            next_seconds = max(min([self._looked + _LOOK_SECONDS - now, *dues]), 0.0)
        wires = self._wires
        select.select([wires.wake_reads, wires.told], [], [], next_seconds)
        try:
            return list(wires.wake_reads.recv(4096))
        except BlockingIOError:
            return []

    def _heed(self, signals: Sequence[int], started: Callable[[], object]) -> None:
        for number in signals:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._end()
            elif number == signal.SIGHUP:
                self._kill(signal.SIGHUP)
        self._listen()
        if not self._begun and all(worker.ready for worker in self._workers):
            self._begun = True
            started()
        self._steer()
        if self._deadline is not None and all(w.left or not w.pid for w in self._workers):
            for worker in self._workers:
                _refuse(worker.listener)

    def _listen(self) -> None:
        wires = self._wires
        with contextlib.suppress(BlockingIOError):
            while told := os.read(wires.told, 1 << 16):
                wires.lines += told
        *lines, wires.lines = wires.lines.split(b"\n")
        for line in lines:
            self._hear(json.loads(line))

    def _hear(self, what: dict[str, Any]) -> None:
        worker = self._workers[what["seat"]]
        if "ready" in what:
            worker.ready, worker.still = True, 0.0
        elif "loads" in what:
            worker.loads = what["loads"]
        elif "leaves" in what:
            worker.leaves = True
        elif "hangs" in what:
            self._hang(worker, what["hangs"])
        elif "left" in what:
            worker.left = True
        elif "failed" in what:
            kind, text = what["failed"]
            if self._begun:
                log.error("worker %d could not begin: %s", worker.number, text)
            elif self._failure is None:
                self._failure = _FAILURES.get(kind, RuntimeError)(text)
        else:
            name, digest, path = what["serves"]
            new = self._begun and self._known.get(name, ("", ""))[0] != digest
            self._known[name] = (digest, path)
            if new:  # the others need not wait for the next time that they would ask
                self._kill(LOOK, but=worker)

    def _end(self) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + self._end_seconds
            self._kill(signal.SIGTERM)
        else:
            self._kill(signal.SIGQUIT)

    def _reap(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if not worker.pid:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._listen()  # to what it said last
                self._board.take(worker.number, False)
                self._ended(worker.number)
                self._died(worker, os.waitstatus_to_exitcode(status), now)
        if self._deadline is not None and now > self._deadline:
            self._kill(signal.SIGKILL)

    def _look(self) -> None:
        """Kill whoever hangs, in a loop that does not turn: no signal that it heeds would help."""
        now = time.monotonic()
        passed = now - self._looked
        if passed < _LOOK_SECONDS:
            return
        self._looked = now
        for worker in self._workers:
            pulse = self._board.pulse(worker.number)
            # All processes may have been stopped for long, and this one be the first to go on.
            still = min(passed, 2 * _LOOK_SECONDS) if pulse == worker.pulse else -math.inf
            worker.still = max(worker.still + still, 0.0)
            worker.pulse = pulse
            if worker.ready and worker.still >= self._hang_seconds:
                self._hang(worker, f"its loop has not turned for {worker.still:.0f} s")
            elif not worker.ready and now - worker.born >= self._start_seconds:
                what = f"loads {worker.loads}" if worker.loads else "has loaded nothing"
                self._hang(worker, f"it {what} and is not ready after {now - worker.born:.0f} s")
        self._steer()

    def _hang(self, worker: _Worker, why: str) -> None:
        if worker.pid:
            log.error("worker %d (process %d) hangs: %s", worker.number, worker.pid, why)
            if not self._begun and self._failure is None:
                self._failure = TimeoutError(f"worker {worker.number} hangs: {why}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)

    def _died(self, worker: _Worker, status: int, now: float) -> None:
        pid, worker.pid = worker.pid, 0
        how = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
        if self._deadline is not None:
            if status and worker.ready:
                self._status = 1
            return
        if not self._begun:
            text = f"worker {worker.number} (process {pid}) {how} before it served"
            self._failure = self._failure or ChildProcessError(text)
            self._end()
            return
        worker.ready = False
        self._steer()
        steady = now - worker.born >= _STEADY_SECONDS
        worker.young_deaths = 0 if steady else worker.young_deaths + 1
        pause = _PAUSES[min(max(worker.young_deaths - 1, 0), len(_PAUSES) - 1)]
        worker.due = now + pause
        log.error(
            "worker %d (process %d) %s; it is replaced%s",
            *(worker.number, pid, how, f" in {pause:g} s" if pause else ""),
        )
        if pause and not self._steers:  # what would wait too long goes to the others
            _refuse(worker.listener)

    def _steer(self) -> None:
        """New connections go to the seats whose workers take them."""
        if not self._begun or not self._steers:
            return
        places = [worker.number for worker in self._workers if worker.open]
        if places and places != self._open:
            everybody = len(places) == len(self._workers)
            self._steers = steer(self._workers[0].listener, [] if everybody else places)
            self._open = places

    # -- processes -----------------------------------------------------------------------------

    def _kill(self, number: int, but: _Worker | None = None) -> None:
        for worker in self._workers:
            if worker.pid and worker is not but:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, number)

    def _fill(self) -> None:
        """Fork a worker into each seat that is empty and due."""
        if self._deadline is not None:
            return
        for worker in self._workers:
            if worker.pid or worker.due > time.monotonic():
                continue
            sys.stdout.flush()
            sys.stderr.flush()
            let_in(worker.listener)
            worker.leaves = worker.left = False
            worker.loads = ""
            # A signal that came between the fork and the worker's own handlers would be heeded
            # by the supervisor's, and wake the supervisor in the worker's place.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (*_HEEDED, LOOK))
            try:
                pid = os.fork()
                if not pid:
                    self._become(worker, blocked)
                worker.pid, worker.born = pid, time.monotonic()
            except OSError as error:  # a limit of processes or memory, which may pass
                if not self._begun:
                    raise
                worker.due = time.monotonic() + _FORK_PAUSE
                log.error("worker %d cannot be forked: %s; tried again", worker.number, error)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _become(self, worker: _Worker, blocked: Iterable[int]) -> NoReturn:
        """The life of a forked process; it never returns to what the supervisor was doing."""
        status = FAILED
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            # A terminal and some platforms signal every process; one that is told twice by them
            # must not take it for impatience. Only the supervisor speaks of that, by SIGQUIT.
            for number in (signal.SIGINT, signal.SIGHUP, LOOK):
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            self._wires.cut_supervisor()
            for other in self._workers:
                if other is not worker:
                    other.listener.close()
            seat = Seat(
                number=worker.number,
                listener=worker.listener,
                board=self._board,
                known=dict(self._known),
                tells=self._wires.tells,
                lives=self._wires.lives,
            )
            try:
                status = self._work(seat)
            except Exception as error:
                seat.tell(failed=_described(error))
        except BaseException:
            log.exception("worker %d failed", worker.number)
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)


def _refuse(listener: socket.socket) -> None:
    """End a listener; whoever connects now is refused at once."""
    for connection in silence(listener):
        connection.close()


def _described(error: Exception) -> tuple[str, str]:
    """The kind of an error, as the supervisor can raise it again, and its text."""
    kinds = [kind for kind, known in _FAILURES.items() if isinstance(error, known)]
    text = str(error) or repr(error)
    return (kinds[0] if kinds else type(error).__name__), text[:_TEXT]
