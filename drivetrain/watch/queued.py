"""A listener whose writing happens in batches, on a thread of its own."""

import threading
from collections import deque
from collections.abc import Sequence

from drivetrain.core.metric import Emit, Metric, Note
from drivetrain.watch.listener import Listener, stderr

ROOM = 100_000
"""Metrics that wait at most: about 30 MB, and minutes of any training."""
BATCH = 1000
"""The most metrics in one batch."""

Heard = tuple[Metric, float]
"""A metric, and the Unix time at which it was heard."""


class Queued(Listener):
    """Hears at the price of an append, whatever happens to the disk or the network behind.

    What cannot be written as fast as it comes waits, up to a bound. Behind that the points of a
    series are dropped and counted, and the count is told at the end; a single figure never is.
    """

    def __init__(
        self, tell: Emit = stderr, *, every: float = 2.0, room: int = ROOM, grace: float = 30.0
    ) -> None:
        """Args:
        tell: hears one warning if the writing fails, and one if metrics were dropped.
        every: seconds between two batches.
        room: metrics that may wait.
        grace: seconds that the end of the run waits for the last batches.
        """
        super().__init__(tell)
        self.dropped = 0
        self._every = every
        self._room = room
        self._grace = grace
        self._waiting: deque[Heard] = deque()
        self._closing = threading.Event()
        self._run_failed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; the first metric does, if nobody did before."""
        name = type(self).__name__.lower()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def hear(self, metric: Metric, at: float) -> None:
        """Let one metric wait for the thread."""
        if len(self._waiting) >= self._room and metric.step is not None:
            self.dropped += 1
            return
        self._waiting.append((metric, at))
        if self._thread is None:
            self.start()

    def end(self, failed: bool) -> None:
        """Write what waits, as long as grace is given."""
        if self._thread is None:
            return
        self._run_failed = failed
        self._closing.set()
        self._thread.join(self._grace)
        if self._thread.is_alive():
            left = f"{len(self._waiting):,} metrics left after {self._grace:g} s"
            self.fail(TimeoutError(f"it could not write in time: {left}"))
        elif self.dropped:
            text = f"{type(self).__name__} wrote slower than the run measured: "
            text += f"{self.dropped:,} points of series were dropped"
            self._tell(Note(stage="listen", text=text, warning=True))

    def _work(self) -> None:
        try:
            try:
                self.begin()
                self._write_until_closed()
            finally:
                self.release()
        except Exception as error:
            self._waiting.clear()
            self.fail(error)

    def _write_until_closed(self) -> None:
        while True:
            last = self._closing.wait(self._every)  # asked before the queue: nothing comes after
            while batch := self._take():
                self.write(batch)
            if last:
                return self.finish(self._run_failed)

    def _take(self) -> list[Heard]:
        count = min(len(self._waiting), BATCH)  # only this thread takes
        return [self._waiting.popleft() for _ in range(count)]

    def begin(self) -> None:
        """Get ready; on the thread, as all below."""

    def write(self, batch: Sequence[Heard]) -> None:
        """Write one batch."""
        raise AssertionError(f"{type(self).__name__} writes nothing")

    def finish(self, failed: bool) -> None:
        """All is written; ``failed`` says that the run did not end well."""

    def release(self) -> None:
        """Close what :meth:`begin` opened, also after an error."""
