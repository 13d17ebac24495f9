"""A listener of the metric stream that can fail without harm to what it listens to."""

import sys
import time
from types import TracebackType
from typing import Self

from drivetrain.core.metric import Emit, Emitted, Metric, Note


def stderr(item: Emitted) -> None:
    """Print a note or a metric on standard error: where a warning goes if nobody else hears it."""
    if isinstance(item, Note):
        mark = "warning: " if item.warning else ""
        print(f"{item.stage}: {mark}{item.text}", file=sys.stderr)
    elif isinstance(item, Metric):
        print(item, file=sys.stderr)


class Listener:
    """Hears metrics until it fails for the first time; then it says so once and hears no more.

    What a run measures is worth more than who is told of it: a full disk under the listener's
    files, or a database that is locked, must not end a training of ten hours.
    """

    def __init__(self, tell: Emit = stderr) -> None:
        """Args:
        tell: hears one warning if this listener fails.
        """
        self._tell = tell
        self._failed = False
        self._closed = False

    def __call__(self, item: Emitted) -> None:
        """Take one item of the stream."""
        if isinstance(item, Metric) and not self._failed and not self._closed:
            try:
                self.hear(item, time.time())
            except Exception as error:
                self.fail(error)

    def close(self, failed: bool = False) -> None:
        """Write out what was heard; ``failed`` says that the run did not end well."""
        if self._closed:
            return
        self._closed = True
        try:
            self.end(failed)
        except Exception as error:
            self.fail(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(failed=kind is not None)

    def fail(self, error: Exception) -> None:
        """Give up, and say so the first time."""
        if self._failed:
            return
        self._failed = True
        name = type(self).__name__
        reason = (str(error) or repr(error)).splitlines()[0]
        text = f"{name} stopped listening, the run goes on without it: {reason}"
        self._tell(Note(stage="listen", text=text, warning=True))

    def hear(self, metric: Metric, at: float) -> None:
        """Take one metric, heard at the Unix time ``at``; called from the run's own thread."""
        raise AssertionError(f"{type(self).__name__} hears nothing")

    def end(self, failed: bool) -> None:
        """Flush and close."""
