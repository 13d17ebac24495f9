"""Files that rows come from: Parquet, CSV, JSON Lines and Arrow, on a disk or an object store.

Paths are local ones, or URLs of any file system that fsspec knows (``s3://``, ``memory://``,
``zip://flights.csv::/data/flights.csv.zip``); credentials are fsspec's own, from its environment.
A path may be a glob; the files that match are read in order of name. All files of one table have
the columns of the first. Timestamps with a zone become UTC; columns of nested types are left out.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob, has_magic
from os import PathLike, fspath
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import Schema
from drivetrain.events.table import Leaf

if TYPE_CHECKING:
    import pyarrow as pa

Paths: TypeAlias = str | PathLike[str] | Sequence[str | PathLike[str]]
Type = Literal["string", "int64", "float32", "float64", "timestamp"]
Types: TypeAlias = Mapping[str, Type] | tuple[tuple[str, Type], ...] | None


def _anywhere(paths: tuple[str, ...]) -> list[str]:
    """Paths without the folders of one machine: where it keeps its files is not what they are.

    Local absolute paths keep their last part; relative ones and those of object stores are whole.
    """
    chained = (path.split("::") for path in paths)
    return ["::".join(map(_last, parts)) for parts in chained]


def _last(part: str) -> str:
    return part.rpartition("/")[2] if part.startswith(("/", "file:")) else part


@dataclass(frozen=True, eq=False)
class Files(Leaf):
    """Rows that lie in files.

    Attributes:
        paths: one path, glob or URL, or several. Of absolute local ones only the last part is in
            the system's digest and its bundle.
    """

    paths: Paths = field(metadata={"as": _anywhere})

    def __post_init__(self) -> None:
        paths = self.paths
        listed = (paths,) if isinstance(paths, str | PathLike) else tuple(paths)
        if not listed or not all(fspath(path) for path in listed):
            raise wrong(f"{type(self).__name__} paths", paths, "at least one path")
        object.__setattr__(self, "paths", tuple(fspath(path) for path in listed))

    @property
    def urls(self) -> tuple[str, ...]:
        """The paths as they were given, each a string."""
        return self.paths  # pyright: ignore[reportReturnType]

    @property
    def schema(self) -> Schema:
        from drivetrain.events.reading.read import schema_of

        return schema_of(self)

    def chunks(self, schema: Schema, rows: int) -> "Iterator[pa.Table]":
        from drivetrain.events.reading.read import read

        return read(self, schema, rows)

    def count(self) -> int | None:
        from drivetrain.events.reading.read import count

        return count(self)

    def stamps(self) -> Sequence[tuple[str, str]]:
        from drivetrain.events.reading.read import stamps

        return stamps(self)

    def local_stamps(self) -> Sequence[tuple[str, int, int]] | None:
        found: list[tuple[str, int, int]] = []
        for url in self.urls:
            local = url.rpartition("::")[2] if url.startswith("zip://") else url
            paths = sorted(glob(local)) if has_magic(local) else [local]
            try:
                states = [os.stat(path) for path in paths]
            except OSError:
                return None
            found += [(p, s.st_size, s.st_mtime_ns) for p, s in zip(paths, states, strict=True)]
        return found


@dataclass(frozen=True, eq=False)
class Parquet(Files):
    """Parquet files, read a row group at a time."""


@dataclass(frozen=True, eq=False)
class Arrow(Files):
    """Arrow IPC files: Feather version 2, or streams."""


@dataclass(frozen=True, eq=False)
class CSV(Files):
    """CSV files with a header line, in UTF-8.

    The types of columns that ``types`` does not name are told from the first file: from its
    first megabyte, and further on for a column that is empty there. A value that does not fit
    is an error that names file, row and column, never a silent null. Numbers with leading zeros
    are text, since they are codes.

    Attributes:
        null: what stands for a missing value.
        types: the types of columns by name, where guessing is not good enough.
        delimiter: the character between values.
    """

    null: Sequence[str] = ("", "NA")
    types: Types = None
    delimiter: str = ","

    def __post_init__(self) -> None:
        super().__post_init__()
        null = (self.null,) if isinstance(self.null, str) else tuple(self.null)
        object.__setattr__(self, "null", null)
        object.__setattr__(self, "types", declared_types(self.types, "CSV"))
        if len(self.delimiter) != 1:
            raise wrong("CSV.delimiter", self.delimiter, "one character")


@dataclass(frozen=True, eq=False)
class JSONLines(Files):
    """JSON objects, one a line, in UTF-8; an absent key is a null.

    Columns and types are told from the first megabyte of the first file, and further on for a
    column that is null there.

    Attributes:
        types: the types of columns by name, also of such as appear late.
    """

    types: Types = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "types", declared_types(self.types, "JSONLines"))


def declared_types(types: Types, where: str) -> tuple[tuple[str, Type], ...]:
    """The types of columns as they are kept.

    Raises:
        ValueError: one is none that columns have.
    """
    named = dict(types or ())
    for name, kind in named.items():
        if kind not in get_args(Type):
            raise unknown("type", str(kind), get_args(Type), f"{where}.types[{name!r}]")
    return tuple(named.items())
