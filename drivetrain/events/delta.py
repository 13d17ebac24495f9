"""Delta Lake tables that rows come from, on a disk or an object store, as they are or as they were.

A table is named by a path, or by a URL of any store that the Rust library ``object_store`` knows,
such as ``s3://bucket/orders``; credentials and endpoints are its own, from the environment
(``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` …), never in a declaration. Rows come in the order of
the commits that brought their files; one version of a table always gives the same rows in the same
order. Timestamps with a zone become UTC; columns of nested types are left out.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from drivetrain.core.errors import wrong
from drivetrain.core.schema import Schema
from drivetrain.events.table import Leaf

if TYPE_CHECKING:
    import pyarrow as pa

    from drivetrain.events.lake.snapshot import Snapshot

LOG = "_delta_log"
"""The folder of a table that holds its commits."""

_COMMIT = re.compile(r"\d{20}\.json")
_CONTAINER = ("abfs", "abfss")  # their URLs name a container where others name a user


def location(path: str | PathLike[str], where: str) -> str:
    """The path or URL of a table.

    Raises:
        ValueError: it is empty, or carries what may be a secret; the error does not show it.
    """
    text = fspath(path)
    if not text:
        raise wrong(where, text, "a path, or a URL such as 's3://bucket/table'")
    if "://" in text:
        parts = urlsplit(text)
        user = "@" in parts.netloc and parts.scheme not in _CONTAINER
        if user or parts.password or parts.query or parts.fragment:
            raise ValueError(
                f"{where}: found a URL with credentials or options in it, allowed: scheme, bucket "
                "and path; credentials are read from the environment (AWS_ACCESS_KEY_ID …)."
            )
    return text


def last_part(path: str) -> str:
    """What a table is called where only its own name matters."""
    return path.rstrip("/").rpartition("/")[2] or path


def local_path(path: str) -> str | None:
    """A table's folder on this machine, or None where it lies elsewhere."""
    if path.startswith("file://"):
        return unquote(urlsplit(path).path)
    return None if "://" in path else path


def _anywhere(path: str) -> str:
    """A path without the folders of one machine: where it keeps its tables is not what they are."""
    return last_part(path) if path.startswith(("/", "file:")) else path


@dataclass(frozen=True, eq=False)
class Delta(Leaf):
    """Rows of a Delta Lake table.

    Attributes:
        path: the table's folder or URL. Of an absolute local one only the last part is in the
            system's digest and its bundle.
        version: which version of the table; None takes the latest at the moment of reading, and
            a run of the pipeline holds to the one with which it began.
    """

    path: str | PathLike[str] = field(metadata={"as": _anywhere})
    _: KW_ONLY
    version: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", location(self.path, "Delta path"))
        if self.version is not None and self.version < 0:
            raise wrong("Delta.version", self.version, "the number of a version, from 0")

    @property
    def url(self) -> str:
        """The path as it was given, a string."""
        return self.path  # pyright: ignore[reportReturnType]

    @property
    def schema(self) -> Schema:
        schema = self._snapshot().schema
        if self.time is not None:
            schema.field(self.time, "Delta time")
        return schema

    def chunks(self, schema: Schema, rows: int) -> "Iterator[pa.Table]":
        return self._snapshot().chunks(schema, rows)

    def count(self) -> int | None:
        return self._snapshot().rows

    def stamps(self) -> Sequence[tuple[str, str]]:
        snapshot = self._snapshot()
        return [(last_part(self.url), f"{snapshot.id}:{snapshot.version}")]

    def pinned(self) -> "Delta":
        if self.version is not None:
            return self
        return dataclasses.replace(self, version=self._snapshot().version)

    def lineage(self) -> Mapping[str, Any]:
        return (
            {} if self.version is None else {"table": last_part(self.url), "version": self.version}
        )

    def local_stamps(self) -> Sequence[tuple[str, int, int]] | None:
        folder = local_path(self.url)
        if folder is None:
            return None
        try:
            with os.scandir(os.path.join(folder, LOG)) as entries:
                commits = [entry for entry in entries if _COMMIT.fullmatch(entry.name)]
            if self.version is not None:
                commits = [c for c in commits if c.name == f"{self.version:020}.json"]
            newest = max(commits, key=lambda entry: entry.name, default=None)
            if newest is None:
                return None
            state = newest.stat()
        except OSError:
            return None
        return [(newest.path, state.st_size, state.st_mtime_ns)]

    def _snapshot(self) -> "Snapshot":
        from drivetrain.events.lake.snapshot import Snapshot

        return Snapshot.open(self.url, self.version)
