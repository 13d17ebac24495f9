"""Memory that the processes of a server share: each writes its own part, all read every part."""

import mmap
import struct
import zlib

from drivetrain.core.errors import wrong

_HEAD = struct.Struct("<QQI")
"""Number of the write, length, CRC-32 of both and of the text that follows."""
_BYTES = 2 << 20
"""Of one text; of a mapping that nobody has written to, no page exists."""

_LOOKS = 100


class Board:
    """One text for each seat, which survives the process that wrote it.

    Made before the processes are forked. Nothing is locked: a seat has two halves that are
    written in turn, each with a number and a checksum, so that a reader always finds a whole
    text, even one whose writer was killed in the middle of the next.

    Args:
        seats: how many.
    """

    def __init__(self, seats: int) -> None:
        self.seats = seats
        self._map = mmap.mmap(-1, seats * (2 + 2 * _BYTES))
        self._numbers = [0] * seats

    def take(self, seat: int, live: bool) -> None:
        """Say whether a process that serves sits there; what it wrote stays either way."""
        self._map[seat] = live

    def live(self, seat: int) -> bool:
        """Whether a process that serves sits there."""
        return self._map[seat] == 1

    def beat(self, seat: int) -> None:
        """Show that the process there still turns; called at least once a second."""
        self._map[self.seats + seat] = (self._map[self.seats + seat] + 1) % 256

    def pulse(self, seat: int) -> int:
        """A number that changes with each beat, and comes again after 256."""
        return self._map[self.seats + seat]

    def write(self, seat: int, text: bytes) -> None:
        """Put a text in the place of the one before.

        Raises:
            ValueError: it is longer than the part.
        """
        if len(text) + _HEAD.size > _BYTES:
            raise wrong(f"text of seat {seat}", f"{len(text)} bytes", f"{_BYTES - _HEAD.size}")
        self._numbers[seat] = number = max(self._numbers[seat], self._newest(seat)[0]) + 1
        start = self._start(seat, number % 2)
        # The body first: a reader that sees the new head with an old body sees a wrong checksum.
        self._map[start + _HEAD.size : start + _HEAD.size + len(text)] = text
        self._map[start : start + _HEAD.size] = _HEAD.pack(
            number, len(text), _checksum(number, text)
        )

    def read(self, seat: int) -> bytes:
        """The last whole text, empty if there was none."""
        return self._newest(seat)[1]

    def _newest(self, seat: int) -> tuple[int, bytes]:
        # Both halves are torn only to a reader that the writer overtook twice, who looks again.
        for _ in range(_LOOKS):
            halves = [self._half(seat, half) for half in (0, 1)]
            number, text = max(halves, key=lambda found: found[0])
            if number or not any(self._begun(seat, half) for half in (0, 1)):
                return number, text
        return 0, b""

    def _begun(self, seat: int, half: int) -> bool:
        return _HEAD.unpack_from(self._map, self._start(seat, half)) != (0, 0, 0)

    def _half(self, seat: int, half: int) -> tuple[int, bytes]:
        start = self._start(seat, half)
        number, length, checksum = _HEAD.unpack_from(self._map, start)
        text = self._map[start + _HEAD.size : start + _HEAD.size + min(length, _BYTES)]
        if not number or length + _HEAD.size > _BYTES or _checksum(number, text) != checksum:
            return 0, b""
        return number, text

    def _start(self, seat: int, half: int) -> int:
        return 2 * self.seats + (2 * seat + half) * _BYTES


def _checksum(number: int, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(b"%d %d" % (number, len(text))))
