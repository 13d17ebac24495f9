"""The latest events that learners were told of, by number."""

import threading
from collections.abc import Iterable, Sequence
from typing import Any

Event = tuple[Any, ...]

KEPT = 100_000
"""Events that are kept: what a new version takes over, and what one that comes back has missed."""


class Ring:
    """Events in their order, numbered from 0 on; the oldest go. Safe to use from threads.

    Args:
        first: the number of the first that is here.
        events: those from it on.
    """

    def __init__(self, first: int = 0, events: Sequence[Event] = ()) -> None:
        self._lock = threading.Lock()
        self._first = first
        self._events = list(events)

    @property
    def first(self) -> int:
        """The number of the oldest that is here."""
        return self._first

    @property
    def end(self) -> int:
        """The number of the next one."""
        with self._lock:
            return self._first + len(self._events)

    def add(self, events: Iterable[Event]) -> None:
        """Put some behind the last."""
        with self._lock:
            self._events.extend(events)

    def within(self, start: int, stop: int | None) -> list[Event]:
        """Those from ``start`` to before ``stop`` (None: to the last) that are here."""
        with self._lock:
            begin = max(start - self._first, 0)
            return self._events[begin : None if stop is None else max(stop - self._first, 0)]

    def trim(self, most: int = KEPT) -> None:
        """Let the oldest go; not every time, for that moves all others."""
        with self._lock:
            if len(self._events) > most + most // 4:
                gone = len(self._events) - most
                del self._events[:gone]
                self._first += gone
