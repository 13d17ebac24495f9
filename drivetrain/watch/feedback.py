"""Reads what a server saw and said, as it comes to lie in a directory of Parquet files."""

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
    left for the next time.

    Attributes:
        skipped: rows that were passed over because newer ones fill the window.
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
        self.skipped = 0
        self.problems: list[str] = []

    def new(self) -> Iterator[Batch]:
        """The rows of files that were not there before, the oldest first."""
        pq = need("pyarrow.parquet", "data")
        self.problems = []
        files = self._files()
        self._read &= set(files)  # files that were deleted need not be remembered
        wanted: list[Path] = []
        rows = 0
        for path in reversed([path for path in files if path not in self._read]):
            if rows >= self._window:
                self._read.add(path)
                self.skipped += self._rows(pq, path)
            else:
                wanted.append(path)
                rows += self._rows(pq, path)
        for path in reversed(wanted):
            yield from self._batches(pq, path)

    def _files(self) -> list[Path]:
        """Complete files, the oldest first."""
        found: list[tuple[int, Path]] = []
        for path in self._directory.rglob("*.parquet"):
            if path.name.startswith((".", "_")):
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
