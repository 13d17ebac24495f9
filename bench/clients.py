"""Clients that know of each single request what became of it, which a load generator does not."""

import http.client
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

from bench.load import Request


@dataclass
class Seen:
    """What became of the requests.

    Attributes:
        answered: how many had a whole answer, by status.
        lost: connections that ended after a request was sent and before its whole answer.
        refused: connections that nobody took; nothing was sent.
    """

    answered: dict[int, int] = field(default_factory=dict[int, int])
    lost: int = 0
    refused: int = 0

    @property
    def bad(self) -> int:
        """Answers that are not 2xx."""
        return sum(count for status, count in list(self.answered.items()) if status // 100 != 2)

    @property
    def good(self) -> int:
        """Answers of 2xx."""
        return sum(list(self.answered.values())) - self.bad


class Clients:
    """Threads that ask one after the other while the block runs.

    Args:
        port: where the server listens.
        request: what each posts.
        count: how many.
        pause: seconds between an answer and the next request.
    """

    def __init__(self, port: int, request: Request, count: int, pause: float = 0.0) -> None:
        self.seen = Seen()
        self._port = port
        self._request = request
        self._pause = pause
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(count)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(35)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._ended.is_set():
            try:
                if connection.sock is None:
                    connection.connect()
            except OSError:
                with self._lock:
                    self.seen.refused += 1
                time.sleep(0.05)
                continue
            self._one(connection)
            if self._pause:
                self._ended.wait(self._pause)
        connection.close()

    def _one(self, connection: http.client.HTTPConnection) -> None:
        request = self._request
        try:
            connection.request("POST", request.target, request.body, request.all_headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            with self._lock:
                self.seen.lost += 1
            return
        with self._lock:
            answered = self.seen.answered
            answered[answer.status] = answered.get(answer.status, 0) + 1
