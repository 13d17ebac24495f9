"""The server of a process's rows: a thread for each worker, one update for all gradients."""

import contextlib
import hmac
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from drivetrain.train.rows import frames
from drivetrain.train.rows.held_rows import HeldRows, summed
from drivetrain.train.rows.spread import Ids, Rows

Push = tuple[float, list[Ids], list[Rows]]


class RowServer:
    """Gives workers the rows that this process holds, and updates them.

    An update is taken when the gradients of all workers for it are there: they are added in the
    order of the ranks, so that the same gradients give the same bits whoever was first. A pull says
    how many updates must have been taken before it is answered; it waits for those that are
    missing, and names the workers that it waited for in vain.

    Args:
        tables: what this process holds.
        workers: how many push.
        host: the address to listen at.
        seconds: how long a pull waits at most.
    """

    def __init__(
        self, tables: Sequence[HeldRows], workers: int, host: str = "127.0.0.1", seconds: float = 60
    ) -> None:
        self.tables = tables
        self.token = secrets.token_bytes(frames.TOKEN_BYTES)
        self.taken = 0
        self._workers = workers
        self._seconds = seconds
        self._pushed: dict[int, dict[int, Push]] = {}
        self._next = [0] * workers
        self._changed = threading.Condition()
        self._error: str | None = None
        self._closed = False
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((host, 0), backlog=workers + 8)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._start(self._accept, "drivetrain-rows")

    def at(self, update: int) -> None:
        """Go on from a snapshot: so many updates have been taken. Nobody has connected yet."""
        with self._changed:
            self.taken = update
            self._next = [update] * self._workers

    def held(self, update: int, work: Callable[[Sequence[HeldRows]], None]) -> None:
        """Do some work on the tables when so many updates have been taken, and nothing else is.

        Raises:
            ConnectionError: they were not in time; names whose gradients are missing.
        """
        with self._changed:
            self._wait(update)
            work(self.tables)

    def close(self) -> None:
        """End the threads; whoever waits for an answer is told so by its connection."""
        with self._changed:
            self._closed = True
            connections = [self._listener, *self._connections]
            self._changed.notify_all()
        for connection in connections:
            with contextlib.suppress(OSError):  # the other side was first
                connection.shutdown(socket.SHUT_RDWR)  # close alone wakes no thread that reads
            connection.close()
        for thread in self._threads:
            thread.join()

    def _start(self, work: Callable[..., None], name: str, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with self._changed:
                if self._closed:
                    connection.close()
                    return
                self._connections.append(connection)
            self._start(self._serve, "drivetrain-rows-of", connection)

    def _serve(self, connection: socket.socket) -> None:
        """Answer one worker until it goes."""
        try:
            # A worker's machine may be gone.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            reader = frames.Reader(connection)
            frames.prepare(connection, self._seconds)
            worker = self._greeted(reader)
            frames.prepare(connection, None)  # between two requests a worker may compute for long
            while True:
                self._answer(connection, reader, worker)
        except (ConnectionError, TimeoutError, ValueError) as error:
            self._tell(connection, str(error))
        except OSError:  # closed under the thread
            pass
        finally:
            connection.close()
            with self._changed:
                self._connections.remove(connection)

    def _greeted(self, reader: frames.Reader) -> int:
        hello = reader.frame()
        known = hello.kind == frames.HELLO and hello.length == frames.TOKEN_BYTES
        if not known or not hmac.compare_digest(reader.body(hello.length), self.token):
            raise ConnectionError("this server of rows was greeted without its token")
        if not 0 <= hello.number < self._workers or hello.tables != len(self.tables):
            raise ConnectionError(f"rank {hello.number} of {self._workers}, {hello.tables} tables")
        return hello.number

    def _answer(self, connection: socket.socket, reader: frames.Reader, worker: int) -> None:
        frame = reader.frame()
        body = reader.body(frame.length)
        if frame.kind == frames.PUSH:
            dims = [table.shape.dim for table in self.tables]
            self._push(worker, frame.number, frames.read_update(body, dims))
        elif frame.kind in (frames.PULL, frames.PEEK):
            places = frames.read_request(body, len(self.tables))
            with self._changed:
                self._wait(frame.number)
                rows = [
                    table.read(each) if frame.kind == frames.PULL else table.peek(each)
                    for table, each in zip(self.tables, places, strict=True)
                ]
            frames.send(connection, frames.ROWS, frame.number, rows, len(rows))
        else:
            raise ConnectionError(f"a frame of kind {frame.kind}, which no worker sends")

    def _push(self, worker: int, update: int, push: Push) -> None:
        with self._changed:
            if update != self._next[worker]:
                raise ConnectionError(f"update {update} after {self._next[worker] - 1}")
            self._next[worker] += 1
            self._pushed.setdefault(update, {})[worker] = push
            while len(self._pushed.get(self.taken, ())) == self._workers:
                self._take(self._pushed.pop(self.taken))

    def _take(self, pushed: dict[int, Push]) -> None:
        """One update with the gradients of all."""
        pushes = [pushed[worker] for worker in range(self._workers)]
        lr = pushes[0][0]
        try:
            for number, table in enumerate(self.tables):
                if self._workers == 1:
                    table.update(pushes[0][1][number], pushes[0][2][number], lr)
                    continue
                table.update(*_of_all(pushes, number), lr)
        except (MemoryError, ValueError) as error:  # those who wait must hear it
            self._error = f"update {self.taken} failed: {error}"
            self._changed.notify_all()
            raise ConnectionError(self._error) from error
        self.taken += 1
        self._changed.notify_all()

    def _wait(self, update: int) -> None:
        """Wait until so many updates have been taken; the lock is held."""
        if self.taken >= update:
            return
        end = time.monotonic() + self._seconds
        while self.taken < update:
            if self._error or self._closed:
                raise ConnectionError(self._error or "the server of rows was closed")
            left = end - time.monotonic()
            if left <= 0:
                late = [rank for rank, number in enumerate(self._next) if number <= self.taken]
                raise ConnectionError(
                    f"the server of rows waited {self._seconds:g} s in vain for the gradients of "
                    f"update {self.taken} from rank {', '.join(map(str, late))}"
                )
            self._changed.wait(left)

    def _tell(self, connection: socket.socket, text: str) -> None:
        """Say why this worker is served no longer, if it still listens."""
        with contextlib.suppress(OSError):  # it went first
            frames.prepare(connection, 1)
            frames.send(connection, frames.ERROR, 0, [text.encode()[:4096]])


def _of_all(pushes: Sequence[Push], table: int) -> tuple[Ids, Rows]:
    places = np.concatenate([push[1][table] for push in pushes])
    return summed(places, np.concatenate([push[2][table] for push in pushes]))
