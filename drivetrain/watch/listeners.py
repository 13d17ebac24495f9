"""Listeners that write the metric stream where other tools read it: TensorBoard and MLflow."""

import logging
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from drivetrain.core.metric import Emit, Metric
from drivetrain.core.need import need
from drivetrain.watch.listener import Listener, stderr


class TensorBoard(Listener):
    """Writes scalars as TensorBoard's event files, with TensorBoard's own writer.

    The writer has a thread of its own: a metric costs the run some microseconds.
    """

    def __init__(self, directory: str | Path, run: str = "", tell: Emit = stderr) -> None:
        """Args:
        directory: what ``tensorboard --logdir`` is given.
        run: the name of this run under it; empty writes to ``directory`` itself.
        tell: hears one warning if the files can't be written.
        """
        super().__init__(tell)
        self._directory = Path(directory) / run
        self._event: Any = None
        self._summary: Any = None
        self._writer: Any = None

    def hear(self, metric: Metric, at: float) -> None:
        """Write one scalar; a figure without a step is at step 0."""
        writer = self._writer or self._open()
        value = self._summary.Value(tag=metric.name, simple_value=metric.value)
        step = 0 if metric.step is None else metric.step
        event = self._event(wall_time=at, step=step, summary=self._summary(value=[value]))
        writer.add_event(event)

    def _open(self) -> Any:
        """Make the file: not before there is something to write, nor in the constructor."""
        writing = need("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._event = need("tensorboard.compat.proto.event_pb2", "tensorboard").Event
        self._summary = need("tensorboard.compat.proto.summary_pb2", "tensorboard").Summary
        self._writer = writing.EventFileWriter(str(self._directory), max_queue_size=1000)
        return self._writer

    def end(self, failed: bool) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            self._writer.close()


BATCH = 1000
"""The most metrics that MLflow takes in one call."""
PARAMETERS = 100
"""The most parameters that MLflow takes in one call."""
LONGEST = 6000
"""The longest value of a parameter."""


class Mlflow(Listener):
    """Writes metrics to an MLflow tracking store in batches, from a thread of its own.

    MLflow's client takes a second to import and 21 ms for a metric: neither is on the run's own
    path. The run is finished, or failed, when this is closed.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run: str = "",
        parameters: Mapping[str, Any] | None = None,
        tell: Emit = stderr,
        every: float = 2.0,
    ) -> None:
        """Args:
        uri: a tracking address, such as ``sqlite:///mlflow.db``.
        experiment: made if there is none.
        run: the run's name; empty lets MLflow invent one.
        parameters: plain data; what is nested becomes ``outer.inner``.
        tell: hears one warning if the store can't be written.
        every: seconds between two batches.
        """
        super().__init__(tell)
        self._uri = uri
        self._experiment = experiment
        self._run = run
        self._parameters = _flat(parameters or {})
        self._every = every
        self._queue: Queue[tuple[Metric, float]] = Queue()
        self._closing = threading.Event()
        self._status = "FINISHED"
        self._thread = threading.Thread(target=self._write, name="mlflow", daemon=True)
        self._thread.start()

    def hear(self, metric: Metric, at: float) -> None:
        """Hand one metric to the thread."""
        self._queue.put((metric, at))

    def end(self, failed: bool) -> None:
        """Write what is left and end the run."""
        self._status = "FAILED" if failed else "FINISHED"
        self._closing.set()
        self._thread.join()

    def _write(self) -> None:
        try:
            client, store = _client(self._uri)
            try:
                run_id = self._begin(client)
                self._drain(client, run_id)
                client.set_terminated(run_id, self._status)
            finally:
                if store is not None:
                    store.dispose()
        except Exception as error:
            self.fail(error)

    def _begin(self, client: Any) -> str:
        entities = need("mlflow.entities", "mlflow")
        found = client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else client.create_experiment(self._experiment)
        run_id = client.create_run(experiment, run_name=self._run or None).info.run_id
        parameters = [entities.Param(key, value) for key, value in self._parameters.items()]
        for start in range(0, len(parameters), PARAMETERS):
            client.log_batch(run_id, params=parameters[start : start + PARAMETERS])
        return run_id

    def _drain(self, client: Any, run_id: str) -> None:
        entities = need("mlflow.entities", "mlflow")
        while True:
            last = self._closing.wait(self._every)  # read before the queue: nothing comes after
            while batch := self._take():
                client.log_batch(
                    run_id,
                    metrics=[
                        entities.Metric(_name(m.name), m.value, int(at * 1000), m.step or 0)
                        for m, at in batch
                    ],
                )
            if last:
                return

    def _take(self) -> list[tuple[Metric, float]]:
        batch: list[tuple[Metric, float]] = []
        while len(batch) < BATCH:
            try:
                batch.append(self._queue.get_nowait())
            except Empty:
                break
        return batch


def _client(uri: str) -> tuple[Any, Any]:
    """MLflow's client, and the SQL engine under it if there is one."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would call out by itself
    tracking = need("mlflow.tracking", "mlflow")
    if "://" in uri and uri.partition("://")[0] in ("sqlite", "mysql", "postgresql", "mssql"):
        need("sqlalchemy", "mlflow")
        need("alembic", "mlflow")
    quiet = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic")]
    before = [logger.level for logger in quiet]
    try:
        for logger in quiet:  # a new store tells of every table that it makes
            logger.setLevel(logging.WARNING)
        client = tracking.MlflowClient(uri)
    finally:
        for logger, level in zip(quiet, before, strict=True):
            logger.setLevel(level)
    store = getattr(getattr(client, "_tracking_client", None), "store", None)
    return client, getattr(store, "engine", None)


_FORBIDDEN = re.compile(r"[^\w\-. :/]")


def _name(name: str) -> str:
    """A metric's name as MLflow allows it."""
    return _FORBIDDEN.sub("_", name)


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested plain data as ``{"outer.inner": text}``."""
    found: dict[str, str] = {}
    for key, value in parameters.items():
        name = _name(f"{prefix}{key}")
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
            found |= _flat({str(i): v for i, v in enumerate(value)}, f"{name}.")
        else:
            found[name] = str(value)[:LONGEST]
    return found
