"""An append-only log behind a snapshot: what was appended is there again, whatever happened.

A directory holds snapshots and logs by number. The state is the snapshot with the greatest number
and, behind it, the logs from that number on. A log is a head and frames. A frame is written by one
write and one flush, and nobody is told before; so only the last frame of the last log can be torn,
and is cut off. Anything else that does not fit its checksum is damage, and is an error.
"""

import fcntl
import hashlib
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from drivetrain.core import durable

log = logging.getLogger("drivetrain.serve")

_HEAD = struct.Struct("<8sQ8sI")
"""Magic, number, salt, and the CRC-32 of these."""
_FRAME = struct.Struct("<4sIQII")
"""Mark, length and count of the frame, CRC-32 of its content, CRC-32 of these and the salt."""
_MAGIC, _MARK = b"DTWLOG\x00\x01", b"\xd7FRM"
_SNAPSHOT = b"DTWSNAP\x01"


class DamagedError(ValueError):
    """A file that was written whole is not as it was written."""


class Journal:
    """What lies in a directory. Used by one process at a time, by one thread at a time.

    Args:
        room: the directory, which is made if need be.

    Raises:
        OSError: it cannot be read or written.
        ValueError: another process uses it.
    """

    def __init__(self, room: Path) -> None:
        room.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.sync(room.parent)
        self.room = room
        self._sizes: dict[int, int] = {}
        self._claim = os.open(room / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._claim)
            raise ValueError(
                f"[serve] state {str(room)!r}: found another server that uses it, allowed: one "
                "process; several share redis://…"
            ) from None
        for left in room.glob(".[0-9]*"):  # by a process that was killed while it wrote them
            left.unlink()
        self._number = 0
        self._first = 0
        self._frames = 0
        self._salt = b""
        self._file = -1
        self._end = 0
        self._broken = ""

    @property
    def size(self) -> int:
        """The bytes of the logs behind the newest snapshot."""
        return sum(tuple(self._sizes.values()))

    def close(self) -> None:
        """Let another process use it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1

    # -- what was written ----------------------------------------------------------------------

    def snapshot(self) -> bytes | None:
        """The newest snapshot; None where there is none. Asked first, and before :meth:`closed`.

        Raises:
            DamagedError: it is not as it was written.
            OSError: it cannot be read.
        """
        numbers = self._numbers(".snapshot")
        if not numbers:
            return None
        self._first = numbers[-1]
        self._number = max(self._number, self._first)
        path = self._path(self._first, ".snapshot")
        data = path.read_bytes()
        head = len(_SNAPSHOT) + 32
        if data[: len(_SNAPSHOT)] != _SNAPSHOT:
            raise DamagedError(f"{path}: found no head of a snapshot; it is damaged.")
        if hashlib.sha256(memoryview(data)[head:]).digest() != data[len(_SNAPSHOT) : head]:
            raise DamagedError(f"{path}: found another checksum than its own; it is damaged.")
        return data[head:]

    def frames(self) -> Iterator[bytes]:
        """What was appended since the newest snapshot, in order; a torn end is cut off.

        Raises:
            DamagedError: a log is absent, or a frame of one is not as it was written.
            OSError: one cannot be read, or cut.
        """
        numbers = [n for n in self._numbers(".log") if n >= self._first]
        if not numbers:
            if self._first:
                path = self._path(self._first, ".log")
                raise DamagedError(f"{path}: found none, though there is its snapshot.")
            return
        for expected, number in enumerate(numbers, self._first or 1):
            path = self._path(number, ".log")
            if number != expected:
                absent = self._path(expected, ".log")
                raise DamagedError(f"{absent}: found none, though there is {path.name}.")
            yield from self._frames_of(path, number, last=number == numbers[-1])

    def closed(self, number: int) -> Iterator[bytes]:
        """What was appended since the newest snapshot and before a log, in order.

        May be called on another thread than the rest.

        Raises:
            DamagedError: a frame is not as it was written.
            OSError: a log cannot be read.
        """
        for before in range(self._first or 1, number):
            yield from self._frames_of(self._path(before, ".log"), before, last=False)

    def _frames_of(self, path: Path, number: int, last: bool) -> Iterator[bytes]:
        data = path.read_bytes()
        salt = _salt_of(data, number)
        if salt is None:
            raise DamagedError(f"{path}: found no head of log {number}; it is damaged.")
        at, count = _HEAD.size, 0
        while at < len(data):
            found = _frame(data, at, salt)
            if found is None or found[0] != count:
                if not last or _follows(data, at, count, salt):
                    raise DamagedError(
                        f"{path}: found a damaged record at byte {at}, allowed: only the last "
                        "may be torn, and whole ones follow."
                    )
                log.warning("%s: a torn end of %d bytes was cut off", path, len(data) - at)
                os.truncate(path, at)
                durable.sync(path)
                break
            yield found[1]
            at, count = at + _FRAME.size + len(found[1]), count + 1
        self._sizes[number] = at
        if last:
            self._number, self._salt, self._end, self._frames = number, salt, at, count

    # -- what is written -----------------------------------------------------------------------

    def begin(self) -> None:
        """Be ready to append behind what was read.

        Raises:
            OSError: no space, no permission.
        """
        if self._salt:
            self._file = self._opened(self._number)
        else:
            self.turn()

    def append(self, content: bytes) -> None:
        """Write a frame; it is on the disk when this returns, and not there when it raises.

        Raises:
            OSError: no space, or the disk failed.
        """
        if self._broken:
            self._mend()
        checked = zlib.crc32(content)
        head = _FRAME.pack(_MARK, len(content), self._frames, checked, 0)[:-4]
        head += struct.pack("<I", zlib.crc32(head + self._salt))
        try:
            _write(self._file, head + content, self._end)
            os.fdatasync(self._file)
        except OSError as error:
            self._broken = str(error)
            self._mend()
            raise
        self._frames += 1
        self._end += len(head) + len(content)
        self._sizes[self._number] = self._end

    def _mend(self) -> None:
        """Cut off what was written and not flushed: nobody was told of it.

        Raises:
            OSError: not even that is possible.
        """
        os.ftruncate(self._file, self._end)
        os.fdatasync(self._file)
        self._broken = ""

    def turn(self) -> int:
        """Append to a new log from now on; gives its number, for the snapshot before it.

        Raises:
            OSError: no space, no permission; it goes on in the log before.
        """
        if self._broken:  # behind a newer log a torn end would be damage
            self._mend()
        number, salt = self._number + 1, os.urandom(8)
        head = _HEAD.pack(_MAGIC, number, salt, 0)[:-4]
        head += struct.pack("<I", zlib.crc32(head))
        path, before = self._path(number, ".log"), self._file
        try:
            durable.write(path, head)
            opened = self._opened(number)
        except BaseException:  # nor would the log before go on beside a newer one
            path.unlink(missing_ok=True)
            raise
        self._file, self._number, self._salt = opened, number, salt
        self._frames, self._end = 0, len(head)
        self._sizes[number] = self._end
        if before >= 0:
            os.close(before)
        return number

    def keep(self, number: int, content: bytes) -> None:
        """Put a snapshot of all before a log, and delete what lies before it.

        May be called on another thread than the rest.

        Raises:
            OSError: no space, no permission; what lay there stays.
        """
        path = self._path(number, ".snapshot")
        with durable.file(path) as file:
            file.write(_SNAPSHOT)
            file.write(hashlib.sha256(content).digest())
            file.write(content)
        self._first = number
        for suffix in (".snapshot", ".log"):
            for old in self._numbers(suffix):
                if old < number:
                    self._path(old, suffix).unlink()
                    if suffix == ".log":
                        self._sizes.pop(old, None)

    def _opened(self, number: int) -> int:
        return os.open(self._path(number, ".log"), os.O_WRONLY | os.O_CLOEXEC)

    def _path(self, number: int, suffix: str) -> Path:
        return self.room / f"{number:010d}{suffix}"

    def _numbers(self, suffix: str) -> list[int]:
        found = (path.stem for path in self.room.glob(f"[0-9]*{suffix}"))
        return sorted(int(stem) for stem in found if stem.isdigit())


def _write(file: int, data: bytes, at: int) -> None:
    left = memoryview(data)
    while left:
        done = os.pwrite(file, left, at)
        left, at = left[done:], at + done


def _salt_of(data: bytes, number: int) -> bytes | None:
    """The salt in the head of a log, None if that is none."""
    if len(data) < _HEAD.size:
        return None
    magic, found, salt, checked = _HEAD.unpack_from(data)
    sound = zlib.crc32(data[: _HEAD.size - 4]) == checked
    return salt if sound and magic == _MAGIC and found == number else None


def _frame(data: bytes, at: int, salt: bytes) -> tuple[int, bytes] | None:
    """The count and the content of the frame at a place; None where no whole one begins."""
    start = at + _FRAME.size
    if start > len(data):
        return None
    mark, length, count, content, checked = _FRAME.unpack_from(data, at)
    if mark != _MARK or zlib.crc32(data[at : start - 4] + salt) != checked:
        return None
    found = data[start : start + length]
    return (count, found) if len(found) == length and zlib.crc32(found) == content else None


def _follows(data: bytes, at: int, count: int, salt: bytes) -> bool:
    """Whether a later frame is whole: then what lies before it was written and flushed."""
    while (at := data.find(_MARK, at)) >= 0:
        found = _frame(data, at, salt)
        if found is not None and found[0] > count:
            return True
        at += 1
    return False
