"""Files in one file: a ZIP archive that stores them plainly and has one form for equal content.

Source: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.4. Archives are written and read here and
not by ``zipfile``: what is opened must be, but for the checksums, the very bytes that would be
written, so that no tool can find other files in it than this one does.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from drivetrain.core import durable
from drivetrain.core.errors import unknown, wrong

MAGIC = b"PK\x03\x04"
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_VERSION = 20
_MADE_BY = 3 << 8 | _VERSION
_UTF8 = 1 << 11
_ENCRYPTED = 1 << 0 | 1 << 6
_DAY = 1 << 5 | 1
"""1980-01-01, the first that the format knows: when a file was packed is not what it is."""
_MODE = 0o100644 << 16
_MOST_BYTES = (1 << 32) - 1
_MOST_FILES = (1 << 16) - 1
_PIECE = 1 << 20


@dataclass(frozen=True)
class _Entry:
    """A file of an archive: its name, its checksum and where its local header begins."""

    name: bytes
    crc: int
    size: int
    start: int

    @property
    def data(self) -> int:
        return self.start + _LOCAL.size + len(self.name)

    @property
    def end(self) -> int:
        return self.data + self.size

    def local(self) -> bytes:
        head = (MAGIC, _VERSION, _UTF8, 0, 0, _DAY, self.crc, self.size, self.size)
        return _LOCAL.pack(*head, len(self.name), 0) + self.name

    def central(self) -> bytes:
        head = (b"PK\x01\x02", _MADE_BY, _VERSION, _UTF8, 0, 0, _DAY, self.crc)
        rest = (self.size, self.size, len(self.name), 0, 0, 0, 0, _MODE, self.start)
        return _CENTRAL.pack(*head, *rest) + self.name


def _end(entries: int, size: int, start: int) -> bytes:
    return _END.pack(b"PK\x05\x06", 0, 0, entries, entries, size, start, 0)


def write(path: Path, contents: Mapping[str, Callable[[], io.BufferedReader]]) -> None:
    """Pack files into ``path``, whole or not at all; equal files in equal order give equal bytes.

    Args:
        path: the archive; what lies there is replaced.
        contents: how to open each file, by its name. Names have ``/`` between their parts.

    Raises:
        ValueError: a name leads elsewhere, or the whole is 4 GiB or more.
        OSError: no space, no permission; ``path`` is then as it was.
    """
    entries: list[_Entry] = []
    with durable.file(path) as archive:
        for name, opened in contents.items():
            _check_name(name, path)
            start, crc, size = archive.tell(), 0, 0
            archive.write(_Entry(name.encode(), crc, size, start).local())
            with opened() as source:
                while piece := source.read(_PIECE):
                    crc, size = zlib.crc32(piece, crc), size + len(piece)
                    archive.write(piece)
            if archive.tell() > _MOST_BYTES:
                raise wrong(f"{path}", f"{archive.tell()} bytes", f"{_MOST_BYTES} in one file")
            entry = _Entry(name.encode(), crc, size, start)
            archive.seek(start)
            archive.write(entry.local())
            archive.seek(entry.end)
            entries.append(entry)
        start = archive.tell()
        for entry in entries:
            archive.write(entry.central())
        archive.write(_end(len(entries), archive.tell() - start, start))


class Packed:
    """An archive that :func:`write` wrote; nothing of it is unpacked to disk.

    Args:
        path: the archive.

    Raises:
        ValueError: it is not as :func:`write` writes; names what is otherwise.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as archive:
            entries = _read(archive, path)
        self._entries = {entry.name.decode(): entry for entry in entries}

    @property
    def names(self) -> tuple[str, ...]:
        """The files' names, in the order of the archive."""
        return tuple(self._entries)

    def open(self, name: str) -> io.BufferedReader:
        """One of the files, to read.

        Raises:
            ValueError: there is none of that name.
            OSError: it cannot be read.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise unknown("file", name, self._entries, str(self.path))
        return io.BufferedReader(_Part(self.path, entry.data, entry.size), _PIECE)


class _Part(io.RawIOBase):
    """A stretch of a file, read by position."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._place, self._end = start, start + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        view = memoryview(buffer)[: self._end - self._place]
        count = os.preadv(self._file.fileno(), [view], self._place) if view else 0
        self._place += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def is_packed(path: Path) -> bool:
    """Whether a file begins as an archive does; nothing more is read of it."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _read(archive: IO[bytes], path: Path) -> list[_Entry]:
    """The entries of an archive, all of its bytes but the files' own accounted for."""
    length = archive.seek(0, os.SEEK_END)
    archive.seek(max(length - _END.size, 0))
    tail = archive.read()
    if len(tail) < _END.size or tail[:4] != b"PK\x05\x06":
        raise wrong(
            f"{path}: its last bytes", tail, "the end of an archive; it was cut or added to"
        )
    *_, count, size, start, _ = _END.unpack(tail)
    if start + size + _END.size != length:
        raise wrong(f"{path}", f"{length} bytes", f"{start + size + _END.size}, as its end says")
    archive.seek(start)
    directory = archive.read(size)
    entries: list[_Entry] = []
    place = 0
    while place < len(directory):
        entry = _entry(directory, place, entries, path)
        archive.seek(entry.start)
        if archive.read(len(entry.local())) != entry.local() or entry.end > start:
            raise wrong(f"{path}: {entry.name.decode()!r}", "another header before the file than "
                        "in the directory behind", "the same in both places")  # fmt: skip
        place += len(entry.central())
        entries.append(entry)
    if (entries[-1].end if entries else 0) != start or tail != _end(len(entries), size, start):
        raise wrong(f"{path}", f"bytes that belong to no file ({count} are said to be there)",
                    "files and their names only")  # fmt: skip
    return entries


def _entry(directory: bytes, place: int, before: list[_Entry], path: Path) -> _Entry:
    """The entry at a place of the directory, refused if it is not as :func:`write` writes it."""
    head = directory[place : place + _CENTRAL.size]
    if len(head) < _CENTRAL.size:
        raise wrong(f"{path}: its directory", head, f"{_CENTRAL.size} bytes and a name a file")
    values = _CENTRAL.unpack(head)
    flags, method, crc, packed, size, named = (values[n] for n in (3, 4, 7, 8, 9, 10))
    raw = directory[place + _CENTRAL.size : place + _CENTRAL.size + named]
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise wrong(f"{path}: a name", raw, "UTF-8") from None
    _check_name(name, path)
    if any(entry.name == raw for entry in before):
        raise wrong(f"{path}: {name!r}", "twice", "each file once")
    if flags & _ENCRYPTED:
        raise wrong(f"{path}: {name!r}", "encrypted", "stored plainly")
    if method or packed != size:
        found = f"compressed by method {method}, {packed} bytes for {size}"
        raise wrong(f"{path}: {name!r}", found, "stored plainly")
    entry = _Entry(raw, crc, size, before[-1].end if before else 0)
    if directory[place : place + len(entry.central())] != entry.central():
        raise wrong(f"{path}: {name!r}", "another time, place, mode or comment",
                    "what packing gives to it")  # fmt: skip
    if len(before) >= _MOST_FILES:
        raise wrong(f"{path}", f"more than {_MOST_FILES} files", f"{_MOST_FILES}")
    return entry


def _check_name(name: str, path: Path) -> None:
    """Refuse a name that is a directory's, or means another place than one in the bundle."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or set(name) & set("\\:\0"):
        raise wrong(f"{path}: a file's name", name, "parts with '/' between them, below the bundle")
