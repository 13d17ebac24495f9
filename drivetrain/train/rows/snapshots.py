"""Snapshots of the rows that processes hold: one safetensors file for each, whole or absent."""

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from drivetrain.core.durable import sync
from drivetrain.train.rows.held_rows import HeldRows, TableShape
from drivetrain.train.rows.spread import Ids, Rows

KEPT = 4
"""How many stay: two whole checkpoints, one that is being written, and the one just taken."""
CHUNK = 1 << 18
"""Rows that are read at once."""

_TYPES = {"int64": "I64", "float32": "F32"}


class Some(NamedTuple):
    """Some rows of a table in a snapshot."""

    ids: Ids
    values: Rows
    state: Mapping[str, Rows]


class RowSnapshots:
    """The snapshots of one training in one directory, which all of its processes share.

    Args:
        directory: this training's own.
        shapes: the tables.
    """

    def __init__(self, directory: Path, shapes: Sequence[TableShape]) -> None:
        self.directory = directory
        self._shapes = [[shape.name, shape.rows, shape.dim] for shape in shapes]

    def save(self, tables: Sequence[HeldRows], when: str, taken: int, who: str) -> bytes:
        """Write what one process holds; the digest of the file, which is on disk then.

        Args:
            tables: nobody changes them meanwhile.
            when: the step as 12 digits, or ``final``.
            taken: updates so far.
            who: the rank, and of how many.

        Raises:
            OSError: no space, no permission.
        """
        arrays: dict[str, NDArray[Any]] = {}
        for number, table in enumerate(tables):
            arrays |= {f"{number}/{name}": array for name, array in table.kept().items()}
        about = {"tables": json.dumps(self._shapes), "taken": str(taken)}
        self.directory.mkdir(parents=True, exist_ok=True)
        head = f"rows-{when}-{who}"
        descriptor, temporary = tempfile.mkstemp(prefix=f".{head}.safetensors.", dir=self.directory)
        digest = hashlib.sha256()
        try:
            with os.fdopen(descriptor, "wb") as file:
                for part in _parts(arrays, about):
                    digest.update(part)
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            path = self.directory / f"{head}-{digest.hexdigest()}.safetensors"
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync(self.directory)
        return digest.digest()

    def forget(self, before: str | None = None) -> None:
        """Remove the oldest, up to ``before`` and beyond :data:`KEPT`; without it all of them."""
        files = [p for p in self.directory.glob("rows-*.safetensors") if not _final(p)]
        times = sorted({path.name.split("-")[1] for path in files}, reverse=True)
        if before is not None:
            times = [when for when in times if when <= before][KEPT:]
        for path in files:
            if path.name.split("-")[1] in times:
                path.unlink(missing_ok=True)

    def forget_final(self) -> None:
        """Remove what one that was killed before its end left of it."""
        for path in self.directory.glob("rows-final-*.safetensors"):
            path.unlink(missing_ok=True)

    def final(self) -> list[Path]:
        """The files of a training that has ended, whole ones.

        Raises:
            OSError: one is damaged.
        """
        paths = sorted(self.directory.glob("rows-final-*.safetensors"))
        return [self.find(bytes.fromhex(path.stem.split("-")[-1])) for path in paths]

    def find(self, digest: bytes) -> Path:
        """The file with this digest.

        Raises:
            OSError: it is gone, or damaged.
        """
        for path in self.directory.glob(f"rows-*-{digest.hex()}.safetensors"):
            found = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    found.update(block)
            if found.digest() == digest:
                return path
            raise OSError(f"the snapshot {path.name} of rows is damaged; remove its checkpoint too")
        raise OSError(
            f"no snapshot of rows in {self.directory} has the digest {digest.hex()} that the "
            "checkpoint names; remove the checkpoint to go on from the one before."
        )

    def taken(self, path: Path) -> int:
        """How many updates had been taken.

        Raises:
            ValueError: it holds other tables.
        """
        with safe_open(path, "numpy") as file:
            about = file.metadata()
        if json.loads(about["tables"]) != self._shapes:
            raise ValueError(
                f"{path.name}: found tables {about['tables']}, allowed: {self._shapes}."
            )
        return int(about["taken"])

    def rows(self, path: Path, table: int) -> Iterator[Some]:
        """The rows of a table, :data:`CHUNK` at a time."""
        with safe_open(path, "numpy") as file:
            prefix = f"{table}/state/"
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            ids, values = file.get_slice(f"{table}/ids"), file.get_slice(f"{table}/values")
            states = {name.removeprefix(prefix): file.get_slice(name) for name in names}
            count = ids.get_shape()[0]
            for first in range(0, count, CHUNK):
                rows = slice(first, min(first + CHUNK, count))
                state = {name: each[rows] for name, each in states.items()}
                yield Some(ids[rows], values[rows], state)

    def count(self, path: Path, table: int) -> int:
        """How many rows of a table there are."""
        with safe_open(path, "numpy") as file:
            return file.get_slice(f"{table}/ids").get_shape()[0]


def _final(path: Path) -> bool:
    return path.name.startswith("rows-final-")


def _parts(
    arrays: Mapping[str, NDArray[Any]], about: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """A safetensors file piece by piece: the package's own writer would copy all of it first."""
    header: dict[str, Any] = {"__metadata__": dict(about)}
    end = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _TYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for array in arrays.values():
        if array.size:
            yield np.ascontiguousarray(array).data.cast("B")
