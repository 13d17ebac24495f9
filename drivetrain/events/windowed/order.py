"""Windows of rows that come in order of time: answered at once, with the state of all keys."""

from typing import TYPE_CHECKING

from drivetrain.core.schema import MISSING_INT

if TYPE_CHECKING:
    from drivetrain.core.batch import Array, Batch
    from drivetrain.core.tracks import Tracks

STATE = 256 << 20
"""Where all keys together take more bytes than this, they are sorted and walked one by one."""

FREE = 4 << 20
"""Up to so many bytes it does not pay to look for keys that may be forgotten."""


class NotInOrderError(Exception):
    """Rows cannot be answered as they come: one came late, or too many keys are open at once."""


class InOrder:
    """Answers rows as they come, which is right for as long as they come in order of time."""

    def __init__(self, tracks: "Tracks") -> None:
        """Begin; the tracks know nothing yet, and what they observe is known at a row's time."""
        self._tracks, self._time = tracks, tracks.windows.time
        self._latest, self._most = MISSING_INT, FREE

    def answer(self, batch: "Batch") -> "dict[str, Array]":
        """The windows of the next rows.

        Raises:
            NotInOrderError: a row is earlier than one before it, or memory gets short.
        """
        times = batch[self._time]
        times = times[times != MISSING_INT]
        if len(times):
            if times[0] < self._latest or bool((times[1:] < times[:-1]).any()):
                raise NotInOrderError
            self._latest = int(times[-1])
        found = self._tracks.replay(batch)
        if self._tracks.bytes > min(self._most, STATE):
            self._tracks.expire(self._latest)
            size = self._tracks.bytes
            if size > STATE:
                raise NotInOrderError
            # To look at all keys takes time, as to make those anew that come again: not before
            # there is as much again.
            self._most = max(FREE, 2 * size)
        return found
