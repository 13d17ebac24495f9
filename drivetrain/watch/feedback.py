"""Reads what a server saw and said, as it comes to lie in a directory of Parquet files."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain.core.batch import Batch
from drivetrain.core.bundle import Manifest
from drivetrain.core.need import need
from drivetrain.core.schema import Field, Schema
from drivetrain.watch.drift import PREDICTION

if TYPE_CHECKING:
    import pyarrow.parquet

ROWS = 8192
"""Rows in memory at a time."""
SETTLED = 60.0
"""Seconds after which a file without a footer is no file that is being written."""
_DAY = re.compile(r"date=\d{4}-\d{2}-\d{2}")


def feedback_schema(manifest: Manifest) -> Schema:
    """The columns of feedback that may drift: the inputs, and predictions of one value a row."""
    outputs = [
        Field(PREDICTION + field.name, field.dtype)
        for field in manifest.outputs
        if all(n == 1 for n in field.shape)
    ]
    return Schema((*manifest.inputs, *outputs))


class Feedback:
    """New rows of a directory, each file read once and never more than a batch in memory.

    A file that is being written (its name begins with a dot, or its footer is not there yet) is
    left for the next time. Of directories named ``date=YYYY-MM-DD`` the first look takes only the
    newest that fill the window, and each later one the newest two that it knew: a server keeps
    weeks of files, and a look a second must not list them all. What lies under a name that begins
    with ``_``, such as what a shadow said, is passed over.

    Attributes:
        skipped: rows that were passed over because newer ones fill the window, of the files in
            the directories that were looked at.
        problems: what could not be read in the last pass.
    """

    def __init__(self, directory: str | Path, schema: Schema, window: int) -> None:
        """Args:
        directory: need not exist yet; files may lie in folders below it.
        schema: the columns wanted; a file that lacks some is read for the rest.
        window: rows of which the newest are enough.
        """
        self._directory = Path(directory)
        self._schema = schema
        self._window = window
        self._read: set[Path] = set()
        self._since = ""
        self.skipped = 0
        self.problems: list[str] = []

    def new(self) -> Iterator[Batch]:
        """The rows of files that were not there before, the oldest first."""
        pq = need("pyarrow.parquet", "data")
        self.problems = []
        wanted: list[Path] = []
        seen: set[Path] = set()
        rows = 0
        for day, files in self._groups():
            for path in reversed(files):
                seen.add(path)
                if path in self._read:
                    continue
                if rows >= self._window:
                    self._read.add(path)
                    self.skipped += self._rows(pq, path)
                else:
                    wanted.append(path)
                    rows += self._rows(pq, path)
            if rows >= self._window:
                self._since = max(self._since, day)  # what is older would come after what is newer
                break
        self._read &= seen  # what was deleted, or lies in days of old, need not be remembered
        for path in reversed(wanted):
            yield from self._batches(pq, path)

    def _groups(self) -> Iterator[tuple[str, list[Path]]]:
        """Complete files, the oldest first: those of no day, then those of each day with its name,
        the newest day first, down to the one before the newest that was known at the last look."""
        days: dict[str, list[Path]] = {}
        yield "", self._complete(self._walk(self._directory, days))
        names, since = sorted(days, reverse=True), self._since
        if names:
            self._since = max(since, names[min(1, len(names) - 1)])
        for name in names:
            if name < since:
                return
            yield name, self._complete(path for room in days[name] for path in _files(room))

    def _walk(self, room: Path, days: dict[str, list[Path]]) -> Iterator[Path]:
        """The files that lie in no day's directory; those directories are put in ``days``."""
        for entry in _entries(room):
            if entry.name.startswith((".", "_")):
                continue
            path = Path(entry.path)
            if not entry.is_dir(follow_symlinks=False):
                yield path
            elif _DAY.fullmatch(entry.name):
                days.setdefault(entry.name, []).append(path)
            else:
                yield from self._walk(path, days)

    def _complete(self, paths: Iterator[Path]) -> list[Path]:
        found: list[tuple[int, Path]] = []
        for path in paths:
            if path.suffix != ".parquet" or path.name.startswith((".", "_")):
                continue
            try:
                found.append((path.stat().st_mtime_ns, path))
            except FileNotFoundError:
                continue  # deleted since it was listed
        return [path for _, path in sorted(found)]

    def _rows(self, pq: Any, path: Path) -> int:
        try:
            return pq.read_metadata(path).num_rows
        except (OSError, ValueError):
            return 0

    def _batches(self, pq: Any, path: Path) -> Iterator[Batch]:
        arrow = need("pyarrow", "data")
        try:
            file: pyarrow.parquet.ParquetFile = pq.ParquetFile(path)
        except FileNotFoundError:
            return
        except (OSError, arrow.ArrowInvalid) as error:
            if time.time() - path.stat().st_mtime > SETTLED:
                self._read.add(path)
                self.problems.append(f"{path}: {str(error).splitlines()[0]}")
            return  # or its footer is not there yet
        with file:
            self._read.add(path)
            names = set(file.schema_arrow.names)
            schema = Schema(tuple(field for field in self._schema if field.name in names))
            if not len(schema):
                self.problems.append(f"{path} has none of the columns of this bundle")
                return
            columns: Sequence[str] = schema.names
            try:
                for batch in file.iter_batches(batch_size=ROWS, columns=list(columns)):
                    yield Batch.from_arrow(batch, schema)
            except (OSError, ValueError) as error:  # Arrow's errors are ValueErrors
                self.problems.append(f"{path}: {str(error).splitlines()[0]}")


def _entries(room: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(room) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _files(room: Path) -> Iterator[Path]:
    return (Path(entry.path) for entry in _entries(room))
