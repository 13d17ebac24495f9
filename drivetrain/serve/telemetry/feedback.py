"""Requests and answers as events in Parquet, written behind the server's back and bounded."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from drivetrain.core.batch import Array
from drivetrain.core.durable import write
from drivetrain.core.need import need
from drivetrain.serve.execution.models import Model
from drivetrain.serve.telemetry.family import Counter, Family
from drivetrain.serve.telemetry.metrics import Metrics
from drivetrain.serve.telemetry.record import Event, Layout, Role, table
from drivetrain.serve.telemetry.retention import Retention, place

log = logging.getLogger("drivetrain.serve")

_SWEEP_SECONDS = 60.0
_CLOSE_SECONDS = 10.0
"""For what is held to be written at the end; a disk that is away must not keep a server alive."""


class Feedback:
    """Writes ``directory/<model>/date=<UTC day>/part-<utc>-<pid>-<n>.parquet``, each file whole
    when it appears.

    A file has one row for each row that was asked for (see
    :func:`drivetrain.serve.telemetry.record.table`). What a shadow said lies apart, under
    ``directory/_shadow/<model>/``: nobody was answered it, so it must not train the next bundle
    unless somebody asks for it by name.

    Held in memory are at most ``queue_rows`` and about ``queue_bytes``, from the answer until the
    file is written; what comes beyond them is dropped and counted, and so is what cannot be
    written. A worker that is killed loses what it held.

    Args:
        directory: where the files go.
        metrics: where rows written and dropped and files deleted are counted.
        file_rows: a file is closed at so many rows.
        file_bytes: or at about so many bytes of memory.
        seconds: or when its first row is so old; each further file of a version waits twice as
            long as the one before, so that a new version's first rows are seen soon.
        longest: seconds that a file waits at most.
        queue_rows: rows held in memory.
        queue_bytes: bytes held in memory.
        retention: how much is kept on disk.
        close_seconds: for what is held to be written at the end.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: the directory cannot be made.
    """

    def __init__(
        self,
        directory: Path,
        metrics: Metrics,
        *,
        file_rows: int = 100_000,
        file_bytes: int = 32 << 20,
        seconds: float = 5.0,
        longest: float = 60.0,
        queue_rows: int = 200_000,
        queue_bytes: int = 64 << 20,
        retention: Retention | None = None,
        close_seconds: float = _CLOSE_SECONDS,
    ) -> None:
        need("pyarrow.parquet", "data")
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._metrics = metrics
        self._file_rows = file_rows
        self._file_bytes = file_bytes
        self._seconds = seconds
        self._longest = max(longest, seconds)
        self._limits = (queue_rows, queue_bytes)
        self._retention = retention or Retention()
        self._close_seconds = close_seconds
        self._queue: deque[Event] = deque()
        self._held_rows = 0
        self._held_bytes = 0
        self._layouts: WeakKeyDictionary[Model, Layout] = WeakKeyDictionary()
        self._waits: dict[_Key, float] = {}
        self._files = 0
        self._on_disk = 0
        self._swept = -_SWEEP_SECONDS
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drivetrain-feedback", daemon=True)
        self._thread.start()

    def offer(
        self,
        model: Model,
        request_id: str,
        latency: float,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
        role: Role = "stable",
    ) -> None:
        """Keep one answered request for the next file, or drop it when too much is held."""
        layout = self._layouts.get(model)
        if layout is None:
            layout = self._layouts.setdefault(model, Layout(model))
        rows, size = len(outputs[0]), layout.size(inputs, outputs)
        most_rows, most_bytes = self._limits
        with self._lock:
            if self._held_rows + rows > most_rows or self._held_bytes + size > most_bytes:
                self._metrics.feedback_dropped.of(model.name).value += rows
                return
            self._held_rows += rows
            self._held_bytes += size
        at = time.time_ns() // 1000
        self._queue.append(
            Event(rows, layout, role, request_id, at, latency, inputs, outputs, size)
        )

    def close(self) -> None:
        """Write what is held, as far as the disk takes it in that time, and end."""
        self._end.set()
        self._thread.join(self._close_seconds)
        if self._thread.is_alive():
            log.error("%s takes nothing: %d rows are lost", self._directory, self._held_rows)

    def _run(self) -> None:
        files: dict[_Key, _File] = {}
        ending = False
        while not ending:
            ending = self._end.wait(min(self._seconds / 4, 0.25))
            # Each turn makes its table at once: one long conversion at a file's end would hold
            # the interpreter, and with it the answers.
            for key, events in self._taken().items():
                self._add(files, key, events)
            crowded = self._is_crowded()
            for key, file in list(files.items()):
                if ending or crowded or file.due <= time.monotonic() or self._is_full(file):
                    self._write(key, files.pop(key))
            self._sweep()

    def _taken(self) -> "dict[_Key, list[Event]]":
        taken: dict[_Key, list[Event]] = {}
        while self._queue:
            event = self._queue.popleft()
            layout = event.layout
            key = _Key(layout.name, layout.version, event.role == "shadow")
            taken.setdefault(key, []).append(event)
        return taken

    def _add(self, files: "dict[_Key, _File]", key: "_Key", events: list[Event]) -> None:
        rows, size = sum(event.rows for event in events), sum(event.size for event in events)
        try:
            made = table(events[0].layout, events)
        except Exception:
            log.exception("events of %s could not be made a table", key.model)
            self._let_go(self._metrics.feedback_dropped, key.model, rows, size)
            return
        if key not in files:
            wait = self._waits.get(key, self._seconds)
            self._waits[key] = min(2 * wait, self._longest)
            files[key] = _File(time.monotonic() + wait)
        files[key].add(made, rows, size)

    def _is_crowded(self) -> bool:
        """Whether the open files of several versions together keep out what comes."""
        most_rows, most_bytes = self._limits
        return 2 * self._held_rows > most_rows or 2 * self._held_bytes > most_bytes

    def _is_full(self, file: "_File") -> bool:
        return file.rows >= self._file_rows or file.size >= self._file_bytes

    def _write(self, key: "_Key", file: "_File") -> None:
        self._files += 1
        now = datetime.now(UTC)
        path = place(self._directory, key.model, key.shadow, now, os.getpid(), self._files)
        family = self._metrics.feedback_rows
        try:
            data = file.parquet()
            write(path, data)
            self._on_disk += len(data)
        except Exception:  # the events are lost, and the server goes on
            log.exception("%d rows of feedback could not be written to %s", file.rows, path)
            family = self._metrics.feedback_dropped
        self._let_go(family, key.model, file.rows, file.size)

    def _let_go(self, family: Family[Counter], model: str, rows: int, size: int) -> None:
        with self._lock:
            self._held_rows -= rows
            self._held_bytes -= size
            family.of(model).value += rows

    def _sweep(self) -> None:
        """Hold the bounds of the disk: once a minute, and whenever this process alone wrote more;
        what others write is seen within the minute."""
        beyond = 0 < self._retention.bytes < self._on_disk
        if not beyond and time.monotonic() - self._swept < _SWEEP_SECONDS:
            return
        try:
            self._on_disk, deleted = self._retention.sweep(self._directory)
        except OSError:
            log.exception("old feedback in %s could not be deleted", self._directory)
            deleted = {}
        self._swept = time.monotonic()
        for model, files in deleted.items():
            self._metrics.feedback_deleted.of(model).value += files


class _Key(NamedTuple):
    """Whose events share a file."""

    model: str
    version: str
    shadow: bool


class _File:
    """What the next file of one version will hold."""

    def __init__(self, due: float) -> None:
        self.due = due
        self.rows = 0
        self.size = 0
        self._tables: list[Any] = []

    def add(self, made: Any, rows: int, size: int) -> None:
        self._tables.append(made)
        self.rows += rows
        self.size += size

    def parquet(self) -> Any:
        pa = need("pyarrow", "data")
        sink = pa.BufferOutputStream()
        table = pa.concat_tables(self._tables)
        need("pyarrow.parquet", "data").write_table(table, sink, compression="zstd")
        return sink.getvalue()
