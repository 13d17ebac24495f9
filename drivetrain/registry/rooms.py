"""The store's directory: its rooms, its locks, and what killed writers left in it."""

import fcntl
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from drivetrain.core.errors import wrong


class Rooms:
    """A directory of rooms, whose writers in several processes exclude one another by ``flock``.

    Attributes:
        root: the directory.
    """

    def __init__(self, root: Path | str) -> None:
        """
        Args:
            root: the store's directory.

        Raises:
            ValueError: the store is at a URL, or is no directory.
        """
        if "://" in str(root) or re.match(r"[\w+.-]+:/", str(root)):
            raise wrong("store", str(root), "the path of a local directory")
        self.root = Path(root).absolute()
        if self.root.exists() and not self.root.is_dir():
            raise wrong("store", str(root), "a directory")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r})"

    def room(self, name: str) -> Path:
        """A directory of the store, which must lie in it and not be a link to elsewhere."""
        path = self.root / name
        if path.is_symlink():
            raise ValueError(f"{path}: found a symbolic link, allowed: a directory of the store.")
        return path

    def sweep(self) -> int:
        """Delete what killed writers left behind, unless someone writes now; how many."""
        with self._exclusive(self.root / ".writing") as alone:
            return self._delete_leftovers() if alone else 0

    def _delete_leftovers(self) -> int:
        swept = 0
        for room in ("bundles", "aliases", "measured", "signatures"):
            for leftover in self.room(room).glob(".*"):
                swept += 1
                if is_directory(leftover):
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)
        return swept

    @contextmanager
    def _exclusive(self, path: Path) -> Generator[bool]:
        """Try to hold a lock alone; gives whether that worked."""
        with _lock_file(path) as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    @contextmanager
    def writing(self) -> Generator[None]:
        """Say that temporary files are in use: whoever sweeps leaves them alone.

        The kernel lets go of the lock when a process dies, so a leftover is known by nobody's
        holding it.
        """
        self.sweep()
        with _lock_file(self.root / ".writing") as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield

    @contextmanager
    def locked(self) -> Generator[None]:
        """Read, change and write back with no other process in between."""
        with self.writing(), _lock_file(self.root / ".lock") as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield


def is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def read(path: Path) -> bytes | None:
    """A file of the store, or None if there is none; never what a link points to."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError:
        if path.is_symlink():
            raise ValueError(f"{path}: found a symbolic link, allowed: a plain file.") from None
        raise
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


@contextmanager
def _lock_file(path: Path) -> Generator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
