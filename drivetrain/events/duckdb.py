"""DuckDB within bounds: a connection of its own, and queries over one chunk of rows at a time."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Lock, get_ident
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from drivetrain.core.cores import cores
from drivetrain.core.errors import wrong
from drivetrain.core.need import need

if TYPE_CHECKING:
    import duckdb

CHUNK = "chunk"
"""What a query calls the rows that it is run over."""

ROW = "__row__"
"""The column that numbers the rows of the spine."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a run of a plan may use.

    Attributes:
        memory: DuckDB's memory limit, such as ``"1GB"``; past it, it spills to disk.
        threads: how many threads; 0 takes the cores that this process may use.
        chunk: rows of the spine that go through the steps together.
        directory: where DuckDB spills; None takes the system's temporary directory.
    """

    memory: str = "1GB"
    threads: int = 0
    chunk: int = 131_072
    directory: Path | None = None

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise wrong("Limits.threads", self.threads, "0 for all cores, or a number of threads")
        if self.chunk < 1:
            raise wrong("Limits.chunk", self.chunk, "at least one row")


class StoppedError(Exception):
    """A thread was to end; whoever stopped it knows, and nobody else sees this."""


class Engine:
    """One DuckDB in memory that runs queries over chunks and holds the tables they look up in.

    Threads may run queries side by side: each has a connection of its own, with a chunk of its own.
    """

    def __init__(
        self, connection: "duckdb.DuckDBPyConnection", directory: Path, threads: int
    ) -> None:
        """Run on a connection; ``directory`` is for what lies on disk as long as it does."""
        self.directory, self.threads = directory, threads
        self._numbers = count()
        self._whole = connection
        self._stopped = False
        self._lock = Lock()
        self._connections = {get_ident(): _quiet(connection)}

    @property
    def connection(self) -> "duckdb.DuckDBPyConnection":
        """The connection of the thread that asks."""
        with self._lock:
            found = self._connections.get(get_ident())
            if found is None:
                found = self._connections[get_ident()] = _quiet(self._whole.cursor())
            return found

    def stop(self) -> None:
        """End the queries of all threads, and let none begin."""
        self._stopped = True
        with self._lock:
            for connection in self._connections.values():
                connection.interrupt()

    def lasting(self, chunks: "Iterable[pa.Table]") -> "Iterator[pa.Table]":
        """The chunks, for as long as the engine is not stopped."""
        for chunk in chunks:
            self._go_on()
            yield chunk

    def _go_on(self) -> None:
        if self._stopped:
            raise StoppedError

    def close(self) -> None:
        """Close the connections of all threads, none of which runs a query any more."""
        with self._lock:
            for connection in self._connections.values():
                connection.close()

    def create(self, columns: str) -> str:
        """Make an empty table; ``columns`` are names and types in SQL. Returns its name."""
        name = f"held_{next(self._numbers)}"
        self.connection.execute(f"CREATE TABLE {name} ({columns})")
        return name

    def insert(self, table: str, query: str, chunk: pa.Table, label: str) -> None:
        """Append what ``query`` gives for :data:`CHUNK` to a table."""
        with self._seen(chunk) as connection, _named(label):
            connection.execute(f"INSERT INTO {table} {query}")

    def drop(self, table: str) -> None:
        """Let go of a table."""
        self.connection.execute(f"DROP TABLE {table}")

    def sorted(
        self, table: str, by: Sequence[str], rows: int, label: str
    ) -> "Iterator[pa.RecordBatch]":
        """The rows of a table in order of columns, at most ``rows`` at a time.

        Raises:
            MemoryError: sorting needs more than the memory limit even so.
            OSError: DuckDB cannot spill.
        """
        with _named(label):
            found = self.connection.sql(f"SELECT * FROM {table} ORDER BY {', '.join(by)}")
            for piece in found.to_arrow_reader(rows):
                self._go_on()
                yield piece

    def run(self, query: str, chunk: pa.Table, label: str) -> pa.Table:
        """What ``query`` gives for :data:`CHUNK`, in order of :data:`ROW`.

        Args:
            query: SQL whose result has the column :data:`ROW`.
            chunk: Arrow columns under their SQL identifiers.
            label: the steps that the query does, for errors.

        Raises:
            ValueError: a value that a step cannot compute with, such as text cast to a number.
            MemoryError: one chunk needs more than the memory limit.
            OSError: DuckDB cannot spill.
        """
        with self._seen(chunk) as connection, _named(label):
            result = connection.sql(query).to_arrow_table()
        rows = result[ROW].to_numpy()
        if len(rows) > 1 and not bool((rows[1:] > rows[:-1]).all()):
            result = result.take(pa.array(np.argsort(rows)))
        return result

    @contextmanager
    def _seen(self, chunk: pa.Table) -> "Iterator[duckdb.DuckDBPyConnection]":
        self._go_on()
        connection = self.connection
        connection.register(CHUNK, chunk)
        try:
            yield connection
        finally:
            connection.unregister(CHUNK)


@contextmanager
def _named(label: str) -> Iterator[None]:
    """DuckDB's errors as Python's own, with the steps that they come from."""
    duckdb = need("duckdb", "data")
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise MemoryError(f"{label}: raise the memory limit. {error}") from error
    except duckdb.IOException as error:
        raise OSError(f"{label}: {error}") from error
    except duckdb.Error as error:
        first = str(error).split("\n")[0]
        raise ValueError(f"{label}: {first}") from error


@contextmanager
def engine(limits: Limits) -> Iterator[Engine]:
    """A DuckDB of its own, that reads no file, variable or extension by itself.

    Raises:
        ValueError: DuckDB does not understand the limits.
    """
    duckdb = need("duckdb", "data")
    threads = limits.threads or cores()
    with tempfile.TemporaryDirectory(prefix=".spill-", dir=limits.directory) as spill:
        settings = {
            "memory_limit": limits.memory,
            "threads": threads,
            "temp_directory": spill,
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        try:
            connection = duckdb.connect(":memory:", config=settings)
        except duckdb.Error as error:
            raise wrong("memory", limits.memory, f"an amount such as '1GB' ({error})") from None
        running = Engine(connection, Path(spill), threads)
        try:
            yield running
        finally:
            running.close()


def _quiet(connection: "duckdb.DuckDBPyConnection") -> "duckdb.DuckDBPyConnection":
    """A connection without a progress bar, which would be written between lines of our output."""
    connection.execute("SET enable_progress_bar = false")
    return connection
