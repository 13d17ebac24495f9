"""The wish that a training ends now: a platform that takes its machine back sends SIGTERM first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Ending:
    """Whether this process was asked to end."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def heeding() -> Iterator[Ending]:
    """Note SIGTERM while the block runs, once; a second one ends the process at once.

    Off the main thread, and where the caller heeds SIGTERM by itself, nothing is noted.
    """
    ending = Ending()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield ending
        return

    def note(number: int, frame: FrameType | None) -> None:
        ending.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, note)
    try:
        yield ending
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
