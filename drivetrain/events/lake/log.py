"""The log of a Delta table: opening it, its errors in plain words, and whose commits are in it.

The format is that of the Delta protocol (https://github.com/delta-io/delta, PROTOCOL.md): commits
in JSON, an action a line, and checkpoints that sum them up.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from drivetrain.core.need import need
from drivetrain.events.delta import LOG, local_path

if TYPE_CHECKING:
    from deltalake import DeltaTable

_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\..+)?\.(?:parquet|json)")
_COMMIT = re.compile(r"(\d{20})\.json")
_STORE = re.compile(r"os error (\d+)|Generic \w+ error|Error performing|ObjectStore")
_DRAWING = re.compile(r"\x1b\[[0-9;]*m|↳|\s+")


def open_table(
    path: str, version: int | None = None, storage: Mapping[str, str] | None = None
) -> "DeltaTable":
    """The table at ``path``, at a version or the latest.

    Raises:
        FileNotFoundError: no table lies there, or its log no longer has that version.
        ValueError: what lies there is damaged, or asks for more than is known here.
        OSError: the store refuses.
    """
    deltalake = need("deltalake", "delta")
    options = dict(storage) if storage else None
    with named_errors(path):
        try:
            return deltalake.DeltaTable(path, version=version, storage_options=options)
        except deltalake.exceptions.DeltaError as error:
            if version is None:
                raise
            newest = deltalake.DeltaTable(path, storage_options=options).version()
            raise FileNotFoundError(
                f"{path}: its log has no version {version}, the latest is {newest}: {_plain(error)}"
            ) from error


@contextmanager
def named_errors(path: str) -> Iterator[None]:
    """What the library says of the table at ``path``, as Python's own errors that name it."""
    exceptions = need("deltalake.exceptions", "delta")
    try:
        yield
    except exceptions.TableNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no Delta table") from error
    except exceptions.CommitFailedError:
        raise
    except exceptions.DeltaError as error:
        found = _STORE.search(str(error))
        if found is None:
            raise ValueError(f"{path}: {_plain(error)}") from error
        if found[1]:
            raise OSError(int(found[1]), _plain(error), path) from error
        raise OSError(f"{path}: {_plain(error)}") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(f"{path}: {_plain(error)}") from error


def _plain(error: Exception) -> str:
    """The library's words on one line."""
    return _DRAWING.sub(" ", str(error)).replace("  ", " ").strip()


def files_of(
    table: "DeltaTable", path: str, storage: Mapping[str, str] | None = None
) -> pafs.FileSystem:
    """The files below a table's folder, the log's included."""
    folder = local_path(path)
    if folder is not None:
        return pafs.SubTreeFileSystem(folder, pafs.LocalFileSystem())
    handler = need("deltalake.fs", "delta").DeltaStorageHandler
    return pafs.PyFileSystem(handler.from_table(table._table, dict(storage or {}), {}))


def applications(files: pafs.FileSystem, version: int) -> set[str]:
    """The applications that have a transaction in a table's log up to a version."""
    commits: dict[int, str] = {}
    checkpoints: dict[int, list[str]] = {}
    for info in files.get_file_info(pafs.FileSelector(LOG)):
        if found := _COMMIT.fullmatch(info.base_name):
            commits[int(found[1])] = info.path
        elif found := _CHECKPOINT.fullmatch(info.base_name):
            checkpoints.setdefault(int(found[1]), []).append(info.path)
    summed = max((number for number in checkpoints if number <= version), default=-1)
    names: set[str] = set()
    for path in checkpoints.get(summed, ()):
        names |= _of_checkpoint(files, path)
    for number in sorted(commits):
        if summed < number <= version:
            commit = actions(files, number)
            names |= {action["txn"]["appId"] for action in commit if "txn" in action}
    return names


def _of_checkpoint(files: pafs.FileSystem, path: str) -> set[str]:
    with files.open_input_file(path) as opened:
        if path.endswith(".json"):
            parsed = map(json.loads, opened.read().splitlines())
            return {action["txn"]["appId"] for action in parsed if action.get("txn")}
        reader = pq.ParquetFile(opened, pre_buffer=False)
        if "txn" not in reader.schema_arrow.names:
            return set()
        rows = reader.read(["txn.appId"])["txn"]
    return {row["appId"] for row in rows.drop_null().to_pylist() if row["appId"] is not None}


def actions(files: pafs.FileSystem, version: int) -> Iterator[Mapping[str, Any]]:
    """The actions of one commit.

    Raises:
        FileNotFoundError: there is none, or it was summed up and removed.
    """
    with files.open_input_file(f"{LOG}/{version:020}.json") as opened:
        text = opened.read()
    return (json.loads(line) for line in text.splitlines() if line.strip())
