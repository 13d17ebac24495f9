"""Writes that are whole or absent, whenever the process or the machine stops."""

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def sync(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def file(path: Path) -> Generator[IO[bytes]]:
    """Fill a temporary sibling that replaces ``path`` when the block ends well.

    Raises:
        OSError: no space, no permission; ``path`` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            yield opened
            opened.flush()
            os.fchmod(opened.fileno(), 0o644)  # mkstemp makes it private; a store is read by others
            os.fsync(opened.fileno())
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # write(2) names no file
            error.filename = str(path)
        raise
    sync(path.parent)


def write(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` atomically: a reader sees the old bytes or the new ones.

    Raises:
        OSError: no space, no permission; ``path`` is then as it was.
    """
    with file(path) as opened:
        opened.write(data)


@contextmanager
def directory(path: Path) -> Generator[Path]:
    """Fill a temporary sibling and rename it to ``path`` when the block ends well.

    If another process finished the same ``path`` first, its result stands and this one is
    dropped: callers name directories by the digest of what is in them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        for made in temporary.rglob("*"):
            sync(made)
        sync(temporary)
        os.chmod(temporary, 0o755)  # mkdtemp makes it private; a store is read by others
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def scratch(parent: Path, name: str) -> Generator[Path]:
    """A folder of ``parent`` that is gone when the block ends, however it ends."""
    folder = parent / name
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
