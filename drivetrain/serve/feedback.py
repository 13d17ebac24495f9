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

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.durable import write
from drivetrain.core.need import need
from drivetrain.core.schema import MISSING_INT, Field
from drivetrain.serve.metrics import Counter, Family, Metrics
from drivetrain.serve.models import Model

log = logging.getLogger("drivetrain.serve")

RECORD = ("request_id", "row", "at", "model", "version", "latency_us")
"""What each event says of its request; ``row`` counts from 0 within it. Where a raw column has
such a name, the record's own column is called ``served.<name>``."""


class _Event(NamedTuple):
    rows: int
    model: Model
    request_id: str
    at: int
    latency: float
    inputs: Sequence[Array]
    outputs: Sequence[Array]


class Feedback:
    """Writes ``directory/<model>/part-<utc>-<pid>-<n>.parquet``, each file whole when it appears.

    A file has one row for each row that was asked for: the record (``request_id``, ``row``,
    ``at``, ``model``, ``version``, ``latency_us``), each raw column under its own name, null where
    it is missing, and ``prediction.<output>`` for each output.

    Args:
        directory: where the files go.
        metrics: where rows written and dropped are counted.
        rows: a file is closed at so many rows.
        seconds: or when its first row is so old.
        queue_rows: rows held in memory; further ones are dropped.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: the directory cannot be made.
    """

    def __init__(
        self,
        directory: Path,
        metrics: Metrics,
        *,
        rows: int = 50_000,
        seconds: float = 5.0,
        queue_rows: int = 200_000,
    ) -> None:
        need("pyarrow.parquet", "data")
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._metrics = metrics
        self._file_rows = rows
        self._seconds = seconds
        self._limit = queue_rows
        self._queue: deque[_Event] = deque()
        self._held = 0
        self._files = 0
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
    ) -> None:
        """Keep one answered request for the next file, or drop it when too many are held."""
        rows = len(outputs[0])
        with self._lock:
            if self._held + rows > self._limit:
                self._metrics.feedback_dropped.of(model.name).value += rows
                return
            self._held += rows
        at = time.time_ns() // 1000
        self._queue.append(_Event(rows, model, request_id, at, latency, inputs, outputs))

    def close(self) -> None:
        """Write what is held, and end."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        files: dict[Model, _File] = {}
        ending = False
        while not ending:
            ending = self._end.wait(min(self._seconds / 4, 0.25))
            # Each turn makes its table at once: one long conversion at a file's end would hold
            # the interpreter, and with it the answers.
            for model, events in self._taken().items():
                try:
                    files.setdefault(model, _File(time.monotonic())).add(model, events)
                except Exception:
                    log.exception("events of %s could not be made a table", model.name)
                    lost = sum(event.rows for event in events)
                    self._count(self._metrics.feedback_dropped, model, lost)
            for model, file in list(files.items()):
                old = time.monotonic() - file.opened >= self._seconds
                if ending or old or file.rows >= self._file_rows:
                    self._write(model, files.pop(model))

    def _taken(self) -> dict[Model, list[_Event]]:
        taken: dict[Model, list[_Event]] = {}
        while self._queue:
            event = self._queue.popleft()
            taken.setdefault(event.model, []).append(event)
        return taken

    def _write(self, model: Model, file: "_File") -> None:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        self._files += 1
        path = self._directory / model.name / f"part-{now}-{os.getpid()}-{self._files}.parquet"
        family = self._metrics.feedback_rows
        try:
            if file.rows:
                write(path, file.parquet())
        except Exception:  # the events are lost, and the server goes on
            log.exception("%d rows of feedback could not be written to %s", file.rows, path)
            family = self._metrics.feedback_dropped
        self._count(family, model, file.rows)

    def _count(self, family: Family[Counter], model: Model, rows: int) -> None:
        with self._lock:
            self._held -= rows
            family.of(model.name).value += rows


class _File:
    """What the next file of one version will hold."""

    def __init__(self, opened: float) -> None:
        self.opened = opened
        self.rows = 0
        self._tables: list[Any] = []

    def add(self, model: Model, events: list[_Event]) -> None:
        self._tables.append(_table(model, events))
        self.rows += sum(event.rows for event in events)

    def parquet(self) -> Any:
        pa = need("pyarrow", "data")
        sink = pa.BufferOutputStream()
        table = pa.concat_tables(self._tables)
        need("pyarrow.parquet", "data").write_table(table, sink, compression="zstd")
        return sink.getvalue()


def _table(model: Model, events: list[_Event]) -> Any:
    pa = need("pyarrow", "data")
    sizes = np.array([event.rows for event in events])
    rows = int(sizes.sum())

    def each(values: list[Any], dtype: Any) -> Any:
        return np.repeat(np.array(values, dtype), sizes)

    record = {
        "request_id": pa.array(each([e.request_id for e in events], np.object_)),
        "row": pa.array(np.arange(rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)),
        "at": pa.array(each([e.at for e in events], np.int64)).cast(pa.timestamp("us")),
        "model": pa.repeat(model.name, rows),
        "version": pa.repeat(model.version, rows),
        "latency_us": pa.array(each([round(e.latency * 1e6) for e in events], np.int64)),
    }
    names = set(model.inputs.names)
    columns = {f"served.{name}" if name in names else name: record[name] for name in RECORD}
    for number, field in enumerate(model.inputs):
        columns[field.name] = _column(field, [event.inputs[number] for event in events])
    for number, field in enumerate(model.bundle.manifest.outputs):
        parts = [event.outputs[number] for event in events]
        if field.shape == (1,):
            field, parts = Field(field.name, field.dtype), [part[:, 0] for part in parts]
        columns[f"prediction.{field.name}"] = _column(field, parts)
    return pa.table(columns)


def _column(field: Field, parts: Sequence[Array]) -> Any:
    """One Arrow column, null where a value is missing."""
    pa = need("pyarrow", "data")
    if field.shape:
        rows = [row.reshape(-1).tolist() for part in parts for row in part]
        kind = pa.from_numpy_dtype(field.numpy)
        fixed = None not in field.shape
        width = int(np.prod([n or 0 for n in field.shape]))
        return pa.array(rows, pa.list_(kind, width) if fixed else pa.list_(kind))
    array = np.concatenate(parts)
    if field.numpy == "object":
        kind = pa.binary() if field.dtype == "bytes" else pa.string()
        return pa.array([value or None for value in array.tolist()], kind)
    if field.numpy == "int64":
        column = pa.array(array, mask=array == MISSING_INT)
        return column.cast(pa.timestamp("us")) if field.dtype == "timestamp" else column
    return pa.array(array, from_pandas=True)  # NaN becomes null
