"""Which files of feedback there are, and which of them go so that they fill no disk."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from drivetrain.core.errors import wrong

SHADOW = "_shadow"
"""Rows that nobody was answered lie apart below this name, which no model can have: a glob over
the models' directories, or a reader that passes over names with ``_``, never takes them for what
was served."""
_NAME = re.compile(r"part-(\d{8}T\d{12}Z)-\d+-\d+\.parquet")
_TEMPORARY = re.compile(rf"\.{_NAME.pattern}\..+")
_STALE_SECONDS = 600.0
"""No file takes so long to be written: whoever began it is dead."""


def place(directory: Path, model: str, shadow: bool, now: datetime, pid: int, number: int) -> Path:
    """Where a file of feedback that is closed ``now`` lies."""
    room = directory / SHADOW / model if shadow else directory / model
    name = f"part-{now:%Y%m%dT%H%M%S%f}Z-{pid}-{number}.parquet"
    return room / f"date={now:%Y-%m-%d}" / name


class _File(NamedTuple):
    closed: str
    path: Path
    size: int


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How much feedback is kept; what is beyond it is deleted, the oldest first.

    Attributes:
        bytes: of all files under the directory together; 0 is no bound.
        days: a file is kept after it was closed; 0 is no bound.

    Raises:
        ValueError: a bound is negative.
    """

    bytes: int = 10 << 30
    days: int = 30

    def __post_init__(self) -> None:
        for name in ("bytes", "days"):
            if getattr(self, name) < 0:
                raise wrong(f"feedback_{name}", getattr(self, name), "0 for no bound, or more")

    def sweep(self, directory: Path, now: datetime | None = None) -> tuple[int, dict[str, int]]:
        """Delete what is beyond the bounds, and what killed writers left half-written.

        Only files with a name that :func:`place` gives are touched: a directory may hold others.
        Several processes may sweep one directory.

        Returns:
            The bytes that are left, and how many files of each model were deleted.
        """
        now = now or datetime.now(UTC)
        files = sorted(_files(directory))
        left = sum(file.size for file in files)
        oldest = f"{now - timedelta(days=self.days):%Y%m%dT%H%M%S%f}Z" if self.days else ""
        deleted: dict[str, int] = {}
        for file in files:
            if file.closed >= oldest and not 0 < self.bytes < left:
                break
            left -= file.size
            try:
                file.path.unlink()
            except OSError:  # another process was faster, or may and this one may not
                continue
            model = _model(directory, file.path)
            deleted[model] = deleted.get(model, 0) + 1
            _leave(file.path.parent, now)
        return left, deleted


def _files(directory: Path) -> Iterator[_File]:
    """The files of feedback; temporary ones that nobody writes any more are deleted."""
    for path in directory.rglob("*part-*"):
        match = _NAME.fullmatch(path.name)
        try:
            if match:
                yield _File(match.group(1), path, path.stat().st_size)
            elif _TEMPORARY.fullmatch(path.name) and _is_stale(path):
                path.unlink()
        except OSError:  # it went since it was listed
            continue


def _is_stale(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > _STALE_SECONDS


def _model(directory: Path, path: Path) -> str:
    first, *rest = path.relative_to(directory).parts
    return rest[0] if first == SHADOW else first


def _leave(room: Path, now: datetime) -> None:
    """Remove the directory of a day that is empty, unless somebody may write to it still."""
    yesterday = f"date={now - timedelta(days=1):%Y-%m-%d}"
    if room.name.startswith("date=") and room.name < yesterday:
        try:
            room.rmdir()
        except OSError:  # it is not empty
            return
