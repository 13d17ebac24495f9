"""Listeners that write the metric stream where other tools read it: TensorBoard and MLflow."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drivetrain.core.metric import Emit
from drivetrain.core.need import need
from drivetrain.watch.listener import stderr
from drivetrain.watch.queued import BATCH, Heard, Queued


class TensorBoard(Queued):
    """Writes scalars as TensorBoard's event files, with TensorBoard's own writer."""

    def __init__(self, directory: str | Path, run: str = "", tell: Emit = stderr) -> None:
        """Args:
        directory: what ``tensorboard --logdir`` is given.
        run: the name of this run under it; empty writes to ``directory`` itself.
        tell: hears a warning if the files can't be written.
        """
        super().__init__(tell)
        self._directory = Path(directory) / run
        self._writer: Any = None

    def begin(self) -> None:
        """Make the file: not before there is something to write."""
        writing = need("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._writer = writing.EventFileWriter(str(self._directory), max_queue_size=BATCH)

    def write(self, batch: Sequence[Heard]) -> None:
        """Write scalars; a figure without a step is at step 0."""
        event = need("tensorboard.compat.proto.event_pb2", "tensorboard").Event
        summary = need("tensorboard.compat.proto.summary_pb2", "tensorboard").Summary
        for metric, at in batch:
            value = summary.Value(tag=metric.name, simple_value=metric.value)
            step = 0 if metric.step is None else metric.step
            self._writer.add_event(event(wall_time=at, step=step, summary=summary(value=[value])))
        self._writer.flush()

    def release(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


PARAMETERS = 100
"""The most parameters that MLflow takes in one call."""
LONGEST = 6000
"""The longest value of a parameter."""


class Mlflow(Queued):
    """Writes metrics to an MLflow tracking store.

    MLflow's client takes a second to import and 21 ms for a metric by itself, in batches a fifth
    of a millisecond: neither is on the run's own path. The run is finished, or failed, when this
    is closed.
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
        tell: hears a warning if the store can't be written.
        every: seconds between two batches.
        """
        super().__init__(tell, every=every)
        self._uri = uri
        self._experiment = experiment
        self._run = run
        self._parameters = _flat(parameters or {})
        self._client: Any = None
        self._run_id = ""
        self._engine: Any = None
        self.start()  # also a run that measures nothing is one that there was

    def begin(self) -> None:
        """Make the run, with its parameters."""
        entities = need("mlflow.entities", "mlflow")
        client, self._engine = _client(self._uri)
        found = client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else client.create_experiment(self._experiment)
        self._run_id = client.create_run(experiment, run_name=self._run or None).info.run_id
        parameters = [entities.Param(key, value) for key, value in self._parameters.items()]
        for start in range(0, len(parameters), PARAMETERS):
            client.log_batch(self._run_id, params=parameters[start : start + PARAMETERS])
        self._client = client

    def write(self, batch: Sequence[Heard]) -> None:
        """Write metrics, as many as MLflow takes in one call."""
        metric = need("mlflow.entities", "mlflow").Metric
        values = [metric(_name(m.name), m.value, int(at * 1000), m.step or 0) for m, at in batch]
        self._client.log_batch(self._run_id, metrics=values)

    def finish(self, failed: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")

    def release(self) -> None:
        """Close the connections."""
        if self._engine is not None:
            self._engine.dispose()


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
