"""A version that is asked what another has answered, when there is time, and compared with it."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.core.schema import Schema
from drivetrain.serve.execution.live import Live, Moment
from drivetrain.serve.execution.models import Model
from drivetrain.serve.execution.predicted import observe
from drivetrain.serve.protocols.calls import Service
from drivetrain.serve.telemetry.family import Counter, Histogram
from drivetrain.serve.telemetry.metrics import DECILES, DIFFERENCES
from drivetrain.serve.telemetry.record import Layout
from drivetrain.serve.versions.spare import Spare

log = logging.getLogger("drivetrain.serve")

_ROWS = 4096
_BYTES = 16 << 20
"""What waits for a shadow at most; what comes beyond it is dropped and counted."""
_GATHER_SECONDS = 0.02
"""Until what was asked meanwhile runs together: nobody waits for it, and each time that a thread
wakes it takes the interpreter from the loop."""
_SHARE = 0.2
"""Of the time that a shadow may run."""
_BUSY = 0.7
"""A thread with a greater demand leaves no time for a shadow."""
_LOOK_SECONDS = 0.1


def places(shadow: Schema, answering: Schema) -> tuple[int, ...]:
    """Where each column of a shadow stands among those of the version that answers.

    Columns that the shadow does not know are left out.

    Raises:
        ValueError: it needs a column that requests do not bring, or one of another type.
    """
    found = {column.name: (number, column) for number, column in enumerate(answering)}
    order: list[int] = []
    for column in shadow:
        number, known = found.get(column.name, (0, None))
        if known is None:
            raise wrong(f"column {column.name!r} of the shadow", "no such column", "one of these")
        if known != column:
            raise wrong(
                f"column {column.name!r} of the shadow",
                f"{column.dtype}{list(column.shape)}",
                f"{known.dtype}{list(known.shape)}, as requests bring it",
            )
        order.append(number)
    return tuple(order)


class _Asked(NamedTuple):
    """An answered request on its way through a shadow."""

    mirror: "Mirror"
    request_id: str
    columns: list[Array]
    answers: Sequence[Array]
    rows: int
    size: int


@dataclass
class _Tally:
    """What one run adds to the metrics; made on the shadow's thread, added on the loop's."""

    rows: int = 0
    seconds: float = 0.0
    answered: int = 0
    failed: int = 0
    predictions: dict[str, Histogram] = field(default_factory=dict[str, Histogram])
    differences: dict[tuple[str, str], Histogram] = field(
        default_factory=dict[tuple[str, str], Histogram]
    )


class Shadow:
    """Runs one version over what others have answered.

    It takes spare time only: it begins after an answer was given, on a thread of its own, while
    no rows wait for a real run and no other thread of the process is near its limit, and runs a
    fifth of the time at most. While there is no time for it, and when its queue is full, what it
    should be asked is dropped and counted. It never fails an answer, and none waits for it; but
    it shares cores and interpreter with those who answer.

    Args:
        model: the version.
        service: the engine whose queue comes first, the metrics and the recorder.
        loop: the event loop; every method is called on its thread.

    Attributes:
        spare: whether there was time for it at the last look.
    """

    def __init__(self, model: Model, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self.model = model
        self.layout = Layout(model)
        self._service = service
        self._loop = loop
        self._tasks: deque[_Asked] = deque()
        self._rows = 0
        self._bytes = 0
        self._asked = threading.Event()
        self._ended = threading.Event()
        requests = service.metrics.shadow_requests
        self._outcomes: dict[str, Counter] = {
            outcome: requests.of(model.name, model.version, outcome)
            for outcome in ("answered", "failed", "dropped")
        }
        self._scalars = [
            (number, output.name)
            for number, output in enumerate(model.bundle.manifest.outputs)
            if output.dtype.startswith("float") and output.shape in ((), (1,))
        ]
        self.spare = True
        self._busy = Spare()
        self._look_at = time.perf_counter() + _LOOK_SECONDS
        self._thread = threading.Thread(target=self._run, name="drivetrain-shadow", daemon=True)
        self._thread.start()

    def beside(self, answering: Model) -> "Mirror":
        """What hands on the requests that ``answering`` has answered.

        Raises:
            ValueError: this version needs columns that those requests do not bring.
        """
        return Mirror(self, answering)

    def ask(self, task: _Asked) -> None:
        """Queue an answered request, or drop it."""
        if self._rows + task.rows > _ROWS or self._bytes + task.size > _BYTES:
            self.drop()
            return
        self._rows += task.rows
        self._bytes += task.size
        self._tasks.append(task)
        if not self._asked.is_set():
            self._asked.set()

    def hears(self, rows: int) -> bool:
        """Whether there is time for it, and room for so many rows."""
        return self.spare and self._rows + rows <= _ROWS and not self._service.engine.waiting

    def drop(self) -> None:
        """Count a request that it is not asked."""
        self._outcomes["dropped"].value += 1

    def close(self) -> None:
        """Begin no further run; what waits is dropped."""
        self._ended.set()
        self._asked.set()

    # -- on its thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended.is_set():
            asked = self._asked.wait(_LOOK_SECONDS)
            self._look()
            if not asked:
                continue
            self._ended.wait(_GATHER_SECONDS)
            self._asked.clear()
            while self._tasks and not self._ended.is_set():
                self._look()
                if not self.spare or self._service.engine.waiting:
                    self._ended.wait(_LOOK_SECONDS)
                    continue
                batch = self._take()
                tally = _Tally()
                try:
                    self._ask(batch, tally)
                except Exception:
                    log.exception("answers of the shadow %s were lost", self.model.version)
                    tally.failed = len(batch) - tally.answered
                self._tell(batch, tally)
                self._ended.wait(tally.seconds * (1.0 / _SHARE - 1.0))
        self._tell(list(self._tasks), None)

    def _take(self) -> list[_Asked]:
        batch = [self._tasks.popleft()]
        rows = batch[0].rows
        limit = self._service.engine.batching.rows
        stackable = self.model.columns.stackable and self.model.cost.pays
        while stackable and self._tasks and rows + self._tasks[0].rows <= limit:
            batch.append(self._tasks.popleft())
            rows += batch[-1].rows
        return batch

    def _ask(self, batch: list[_Asked], tally: _Tally) -> None:
        """Run a batch; when that fails, each request alone, so that only the offender fails."""
        moment = None if self.model.live is None else self._moment(self.model.live, batch)
        started = time.perf_counter()
        try:
            live = {} if moment is None else moment.feeds()
            _, outputs = self.model.run([task.columns for task in batch], live)
        except Exception as error:
            tally.seconds += time.perf_counter() - started
            if len(batch) == 1:
                log.debug("the shadow %s failed", self.model.version, exc_info=error)
                tally.failed += 1
                return
            for task in batch:
                self._ask([task], tally)
            return
        finally:
            if moment is not None:
                moment.release()
        seconds = time.perf_counter() - started
        tally.seconds += seconds
        tally.rows += sum(task.rows for task in batch)
        tally.answered += len(batch)
        for number, name in self._scalars:
            observe(tally.predictions.setdefault(name, Histogram(DECILES)), outputs[number])
        self._compare(batch, outputs, tally)
        if self._service.recorder is not None:
            self._record(batch, outputs, seconds)

    def _moment(self, live: Live, batch: list[_Asked]) -> Moment:
        """What was learnt until now: a run that waits holds no moment, or each would be a copy.

        Raises:
            CancelledError: the shadow was closed meanwhile.
        """
        columns = [np.concatenate(parts) for parts in zip(*(t.columns for t in batch), strict=True)]
        found: Future[Moment] = Future()

        def ask() -> None:
            if found.set_running_or_notify_cancel():
                try:
                    found.set_result(live(columns))
                except Exception as error:
                    found.set_exception(error)

        self._loop.call_soon_threadsafe(ask)
        while True:
            try:
                return found.result(_LOOK_SECONDS)
            except TimeoutError:
                if self._ended.is_set():
                    found.cancel()

    def _compare(self, batch: list[_Asked], outputs: list[Array], tally: _Tally) -> None:
        """Hold outputs against the answers, those of one version together."""
        rows = np.repeat([id(task.mirror) for task in batch], [task.rows for task in batch])
        for mirror in {task.mirror for task in batch}:
            asked = [task.answers for task in batch if task.mirror is mirror]
            mine = rows == id(mirror)
            for name, theirs, ours in mirror.shared:
                answers = np.concatenate([answer[theirs] for answer in asked])
                apart = difference(answers, outputs[ours][mine])
                key = (mirror.version, name)
                found = tally.differences.setdefault(key, Histogram(DIFFERENCES))
                observe(found, apart)
                found.counts[-1] += int(np.count_nonzero(~np.isfinite(apart)))

    def _record(self, batch: list[_Asked], outputs: list[Array], seconds: float) -> None:
        recorder, start = self._service.recorder, 0
        assert recorder is not None, "it was asked for"
        for task in batch:
            said = [array[start : start + task.rows] for array in outputs]
            recorder.offer(self.model, task.request_id, seconds, task.columns, said, "shadow")
            start += task.rows

    def _tell(self, batch: list[_Asked], tally: _Tally | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._land, batch, tally)
        except RuntimeError:  # the server has ended
            self._ended.set()

    def _look(self) -> None:
        """See whether there is time, at most as often as that changes."""
        now = time.perf_counter()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            self.spare = self._busy.busiest() < _BUSY

    # -- on the loop's thread ------------------------------------------------------------------

    def _land(self, batch: list[_Asked], tally: _Tally | None) -> None:
        self._rows -= sum(task.rows for task in batch)
        self._bytes -= sum(task.size for task in batch)
        if tally is None:
            self._outcomes["dropped"].value += len(batch)
            return
        self._outcomes["answered"].value += tally.answered
        self._outcomes["failed"].value += tally.failed
        metrics, labels = self._service.metrics, (self.model.name, self.model.version)
        if tally.rows:
            metrics.inference_seconds.of(*labels).observe(tally.seconds)
            metrics.batch_rows.of(*labels).observe(tally.rows)
        for output, histogram in tally.predictions.items():
            metrics.prediction.of(*labels, output).add(histogram.numbers())
        for (against, output), histogram in tally.differences.items():
            metrics.shadow_difference.of(*labels, against, output).add(histogram.numbers())


class Mirror:
    """Hands on to a shadow what one version has answered.

    Raises:
        ValueError: the shadow needs columns that those requests do not bring.
    """

    def __init__(self, shadow: Shadow, answering: Model) -> None:
        self.shadow = shadow
        self.version = answering.version
        # Rows of equal windows were filled in already; others are looked up for the shadow alone.
        same = shadow.model.filling == answering.filling
        self._lookup = None if same else shadow.model.lookup
        wanted = shadow.model.inputs if self._lookup is not None else shadow.model.whole
        self._order = places(wanted, answering.whole)
        theirs = {o: number for number, o in enumerate(answering.bundle.manifest.outputs)}
        self.shared = [
            (output.name, theirs[output], number)
            for number, output in enumerate(shadow.model.bundle.manifest.outputs)
            if output in theirs
        ]

    def offer(self, request_id: str, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Ask the shadow too, or drop it; at once, and before anything is cut out of its batch."""
        if not self.shadow.hears(len(outputs[0])):
            self.shadow.drop()
            return
        columns = [inputs[number] for number in self._order]
        if self._lookup is None:
            self._ask(request_id, columns, outputs)
            return

        def filled(found: Sequence[Array] | Exception) -> None:
            if isinstance(found, Exception):
                self.shadow.drop()
            else:
                self._ask(request_id, [*columns, *found], outputs)

        self._lookup(columns, filled)

    def _ask(self, request_id: str, columns: list[Array], outputs: Sequence[Array]) -> None:
        size = self.shadow.layout.size(columns, outputs)
        self.shadow.ask(_Asked(self, request_id, columns, outputs, len(outputs[0]), size))


def difference(one: Array, other: Array) -> Array:
    """How far two answers are apart, float64 ``[rows]``.

    Of floats it is the greatest absolute difference within a row, infinite where one of them is
    missing; of anything else 0 where a row is the same and 1 where it is not.
    """
    rows = len(one)
    if one.shape != other.shape:
        return np.ones(rows)
    if one.dtype.kind != "f":
        same = (one == other).reshape(rows, -1).all(axis=1)
        return np.where(same, 0.0, 1.0)
    with np.errstate(invalid="ignore"):
        apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
    return apart.reshape(rows, -1).max(axis=1, initial=0.0)
