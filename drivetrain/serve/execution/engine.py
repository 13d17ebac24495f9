"""Batches without a timer: what arrives in one turn of the loop, or during a run, runs next."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from time import monotonic

from drivetrain.core.batch import Array
from drivetrain.serve.execution.batching import Batching
from drivetrain.serve.execution.live import Moment
from drivetrain.serve.execution.models import Model
from drivetrain.serve.execution.predicted import observe
from drivetrain.serve.execution.runs import Run, compute, parts
from drivetrain.serve.execution.task import ExpiredError, OverloadedError, Task
from drivetrain.serve.telemetry.family import Histogram, Reading
from drivetrain.serve.telemetry.metrics import Metrics

_FEW = 64
"""Rows that may wait without a question where each alone takes little."""
_ALONE = 16
"""After so many runs of one request each the next ones do not wait for the end of the loop's turn,
as it is known that nobody else comes. Every so many that is looked at again."""
_LONG_SECONDS = 1e-3
"""Of a run that is worth two threads: both wait for the interpreter now and then."""
_AGAIN = 7 / 8
"""A queue that was full takes requests again when it is no longer than this part of its limit."""


class _Lane:
    """The queue of one version, and its metrics."""

    def __init__(self, model: Model, metrics: Metrics) -> None:
        self.model = model
        self.tasks: deque[Task] = deque()
        self.rows = 0
        self.scheduled = False
        self.running = 0
        """Batches that are looked up or run, on other threads."""
        self.quick = 0
        """Rows that may wait without a question: they take little time, one by one too."""
        self.alone = 0
        """Runs since one had several requests."""
        self.looked = 0
        """Requests that waited when it was last looked for more."""
        self.shares = model.cost.pays and model.columns.stackable
        self.lookup, self.live = model.lookup, model.live
        self.seconds = metrics.inference_seconds.of(model.name, model.version)
        self.sizes = metrics.batch_rows.of(model.name, model.version)
        self.tally = metrics.statistics.of(model.name, model.version)
        fields = model.bundle.manifest.outputs
        self.predictions: list[tuple[int, Histogram]] = [
            (number, metrics.prediction.of(model.name, model.version, field.name))
            for number, field in enumerate(fields)
            if field.dtype.startswith("float") and field.shape in ((), (1,))
        ]


class _Away:
    """A run on another thread. It is among those that :meth:`Engine.stuck` goes through until it
    has landed: to change their number is for the loop's thread."""

    __slots__ = ("begun", "lane")

    def __init__(self, lane: _Lane) -> None:
        self.lane = lane
        self.begun = math.inf
        """``time.monotonic()``; none until a thread has time for it."""

    def begins(self) -> None:
        """Called on its thread, before it runs."""
        self.begun = monotonic()


class Engine:
    """Runs tasks in batches, those of one version together.

    Args:
        batching: how requests share runs.
        metrics: where runs are counted.
        loop: the event loop; every method is called on its thread.
    """

    def __init__(
        self, batching: Batching, metrics: Metrics, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.batching = batching
        self._metrics = metrics
        self._loop = loop
        self._lanes: dict[Model, _Lane] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._away: dict[int, _Away] = {}
        self.full: set[_Lane] = set()
        """Those that take no requests for now; while there is one, ask :meth:`admit`."""
        self.held = 0
        """Bytes that the tasks hold which wait or run."""
        self.on_full: Callable[[Model, str], object] = lambda model, why: None
        """Told why a version takes no requests for now, and with "" that it takes them again."""

    def open(self, model: Model) -> None:
        """Take tasks for a version."""
        self._lanes[model] = _Lane(model, self._metrics)
        name = model.name
        self._metrics.queue_rows.set(Reading(lambda: self.queued(name)), name)

    def close(self, model: Model) -> None:
        """Take no more tasks for a version; those that wait are still run."""
        self.full.discard(self._lanes.pop(model))
        self._metrics.statistics.remove(model.name, model.version)

    def queued(self, name: str) -> float:
        """Rows that wait for a run of the alias ``name``."""
        return float(sum(lane.rows for m, lane in self._lanes.items() if m.name == name))

    @property
    def waiting(self) -> int:
        """Rows that wait for a run, of all versions; may be asked on any thread."""
        return sum(lane.rows for lane in tuple(self._lanes.values()))

    def admit(self, model: Model) -> None:
        """Ask before a request is decoded: to read what is then sent away would take the time
        that the others wait for.

        Raises:
            OverloadedError: the queue was full and is not yet shorter by some requests.
        """
        lane = self._lanes.get(model)
        if lane in self.full:
            raise OverloadedError(self._crowd(lane, _AGAIN) or "the queue is full.")

    def submit(self, task: Task) -> None:
        """Queue a task for the next run.

        Raises:
            OverloadedError: the queue is full.
        """
        lane = self._lanes[task.model]
        rows, held = lane.rows + task.rows, self.held + task.holds
        if rows > lane.quick or held > self.batching.queue_bytes:
            self._check(lane, task)
        task.queued = monotonic()
        self.held = held
        lane.tasks.append(task)
        lane.rows = rows
        if lane.scheduled or lane.running >= self._at_once(lane):
            return
        if lane.alone >= _ALONE and lane.alone % _ALONE:
            self._turn(lane)
            return
        lane.scheduled = True
        self._loop.call_soon(self._gather, lane)

    def _gather(self, lane: _Lane) -> None:
        """Run what waits once the loop brings no more, or has brought enough: as long as each of
        its turns does, they come faster than they are read, and a run of all of them costs less.
        Nobody waits longer for others than for the run itself."""
        waiting = len(lane.tasks)
        if (
            waiting > lane.looked
            and lane.shares
            and lane.rows < self.batching.rows
            and monotonic() - lane.tasks[0].queued < lane.model.cost.seconds(lane.rows)
        ):
            lane.looked = waiting
            self._loop.call_soon(self._gather, lane)
            return
        self._turn(lane)

    def _check(self, lane: _Lane, task: Task) -> None:
        """Look closely where a limit is near.

        Raises:
            OverloadedError: the queue is full.
        """
        crowd = self._crowd(lane, 1.0, task.rows, task.holds)
        if crowd:
            if lane not in self.full and self._crowd(lane, _AGAIN):  # else it was but too large
                self.full.add(lane)
                self.on_full(task.model, crowd)
            raise OverloadedError(crowd)

    def _crowd(self, lane: _Lane, part: float, rows: int = 0, holds: int = 0) -> str:
        """What there is too much of, for so many rows and bytes more, where a part of each limit
        is allowed; empty if there is not."""
        limits = self.batching
        if lane.rows + rows > part * limits.queue_rows:
            return f"the queue is full: {lane.rows} rows wait."
        if self.held and self.held + holds > part * limits.queue_bytes:
            return f"the queue is full: requests hold {self.held} bytes."
        many = len(lane.tasks) >= part * limits.queue_requests
        if many and self._wait(lane) > part * limits.queue_seconds:
            return f"the queue is full: what waits takes {limits.queue_seconds:g} s."
        return ""

    def _wait(self, lane: _Lane) -> float:
        """The time that the rows which wait are expected to take."""
        runs = 1 + lane.rows // self.batching.rows if lane.shares else len(lane.tasks)
        return lane.model.cost.seconds(lane.rows, runs)

    def _reopen(self) -> None:
        """Let those be asked again whose queue has room for some requests."""
        for lane in [lane for lane in self.full if not self._crowd(lane, _AGAIN)]:
            self.full.discard(lane)
            self.on_full(lane.model, "")

    def stuck(self, seconds: float) -> str:
        """The alias whose run on a thread has taken longer than ``seconds``; empty if none has.

        Neither the wait for a thread counts, nor what ran before in the same batch.
        """
        before = monotonic() - seconds
        names = [away.lane.model.name for away in self._away.values() if away.begun < before]
        return names[0] if names else ""

    def shut_down(self) -> None:
        """End the threads after their present run."""
        if self._pool is not None:
            self._pool.shutdown()

    def _turn(self, lane: _Lane) -> None:
        lane.scheduled = False
        lane.looked = 0
        batch, rows = self._take(lane)
        if self.full:
            self._reopen()
        if not batch:
            return
        lane.alone = lane.alone + 1 if len(batch) == 1 and not lane.tasks else 0
        if lane.lookup is not None or lane.live is not None:
            self._look_up(lane, batch, rows)
            return
        self._run(lane, batch, rows)

    def _look_up(self, lane: _Lane, batch: list[Task], rows: int) -> None:
        """Have the windows of a batch filled in, and then run it."""
        lane.running += 1
        model = lane.model
        try:
            given = model.columns.arrays([task.columns for task in batch])
            if lane.lookup is not None:
                lane.lookup(given, lambda found: self._looked_up(lane, batch, rows, given, found))
                return
        except Exception as error:
            self._looked_up(lane, batch, rows, (), error)
            return
        self._looked_up(lane, batch, rows, given, ())

    def _looked_up(
        self,
        lane: _Lane,
        batch: list[Task],
        rows: int,
        given: Sequence[Array],
        found: Sequence[Array] | Exception,
    ) -> None:
        lane.running -= 1
        moment: Moment | None = None
        if lane.live is not None and not isinstance(found, Exception):
            try:  # nothing has changed since the windows were read, so both are of one moment
                moment = lane.live(given)
            except Exception as error:
                found = error
        if not isinstance(found, Exception):
            self._run(lane, batch, rows, (*given, *found), moment)
            return
        self._go_on(lane)
        for task in batch:
            self.held -= task.holds
            self._fail(lane, task, found)
        if self.full:
            self._reopen()

    def _run(
        self,
        lane: _Lane,
        batch: list[Task],
        rows: int,
        filled: Sequence[Array] | None = None,
        moment: Moment | None = None,
    ) -> None:
        cost = lane.model.cost
        if cost.steady and cost.seconds(rows) <= self.batching.inline_seconds:
            self._land(lane, batch, rows, compute(lane.model, batch, None, filled, moment))
            return
        lane.running += 1
        away = self._away[id(batch)] = _Away(lane)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.batching.threads, "drivetrain-run")
        future = self._pool.submit(compute, lane.model, batch, away.begins, filled, moment)

        def landed(future: "Future[Run]") -> None:
            self._loop.call_soon_threadsafe(self._back, lane, batch, rows, future.result())

        future.add_done_callback(landed)
        self._go_on(lane)

    def _back(self, lane: _Lane, batch: list[Task], rows: int, run: Run) -> None:
        """A run has ended, on its thread.

        Who is answered now often asks again at once. What waits lets the loop look at its sockets
        first, so that it shares a run with them and they need not wait for its own.
        """
        lane.running -= 1
        del self._away[id(batch)]
        waits = bool(lane.tasks) and not lane.scheduled
        lane.scheduled = lane.scheduled or waits
        try:
            self._land(lane, batch, rows, run)
        finally:
            if waits:  # what was read of the sockets stands before this in the loop's queue
                self._loop.call_soon(self._loop.call_soon, self._turn, lane)

    def _at_once(self, lane: _Lane) -> int:
        """How many batches of a version may run at once."""
        cost, runs = lane.model.cost, self.batching.runs
        if runs == 1 or not cost.splits or cost.seconds(1) <= _LONG_SECONDS / 4:
            return 1
        return runs if not lane.running or cost.seconds(lane.rows) > _LONG_SECONDS else 1

    def _take(self, lane: _Lane) -> tuple[list[Task], int]:
        """The tasks of the next run: as many as fit and pay, at least one if any is left."""
        batch: list[Task] = []
        rows = 0
        tasks, now = lane.tasks, monotonic()
        limit = self.batching.rows if lane.shares else 1
        free, cost = self._at_once(lane) - lane.running, lane.model.cost
        if free > 1 and cost.seconds(lane.rows) > free * _LONG_SECONDS and cost.divides(lane.rows):
            limit = min(limit, -(-lane.rows // free))  # the others take the rest
        while tasks and (not batch or rows + tasks[0].rows <= limit):
            task = tasks.popleft()
            lane.rows -= task.rows
            if task.deadline < now:
                self.held -= task.holds
                lane.tally.failed(now - task.received)
                task.failed(ExpiredError())
                continue
            batch.append(task)
            rows += task.rows
        return batch, rows

    def _go_on(self, lane: _Lane) -> None:
        """Have the next batch run, if anybody waits."""
        if lane.tasks and not lane.scheduled and lane.running < self._at_once(lane):
            lane.scheduled = True
            self._loop.call_soon(self._turn, lane)

    def _land(self, lane: _Lane, batch: list[Task], rows: int, run: Run) -> None:
        """A run is over. Its answers go out at the end of the loop's turn, and only after that
        it is counted: nobody waits for it."""
        self._go_on(lane)
        self.held -= sum([task.holds for task in batch])
        good = self._answered_together(lane, batch, run)
        if good is None:
            good = self._answered(lane, batch, run)
        self._loop.call_soon(self._count, lane, rows, run, good, monotonic())
        if self.full:
            self._reopen()

    def _answered_together(self, lane: _Lane, batch: list[Task], run: Run) -> list[Task] | None:
        """Those that were answered at once; None where each is to be answered by itself."""
        route = batch[0].route
        if route is None or run.rows != len(batch) or not run.outputs:
            return None
        if [task for task in batch if task.route is not route]:
            return None
        fail = partial(self._fail, lane)
        return route.answer_together(batch, run.outputs, fail)

    def _answered(self, lane: _Lane, batch: list[Task], run: Run) -> list[Task]:
        """Those that were answered; the others have been told why not."""
        good: list[Task] = []
        outcomes = run.outcomes or parts(lane.model, batch, run)
        for task, outcome in zip(batch, outcomes, strict=True):
            task.run = run
            if isinstance(outcome, Exception):
                self._fail(lane, task, outcome)
                continue
            inputs, outputs = outcome
            try:
                if not run.outputs:
                    for number, histogram in lane.predictions:
                        observe(histogram, outputs[number])
                task.done(inputs, outputs)
            except Exception as error:  # one answer that cannot be written must not take others
                self._fail(lane, task, error)
                continue
            good.append(task)
        return good

    def _count(self, lane: _Lane, rows: int, run: Run, good: list[Task], ended: float) -> None:
        """Count a run, whose last answer was written at ``ended``."""
        cost, limits = lane.model.cost, self.batching
        cost.seen(rows, run.seconds)
        quick = cost.seconds(_FEW, _FEW) < limits.queue_seconds
        lane.quick = min(_FEW, limits.queue_rows) if quick else 0
        lane.seconds.observe(run.seconds)
        lane.sizes.observe(rows)
        for number, histogram in lane.predictions if run.outputs else ():
            observe(histogram, run.outputs[number])
        if good:
            answered = sum([task.rows for task in good])
            arrived = sum([task.received for task in good])
            queued = sum([task.queued for task in good])
            times = (run.begun, run.fed, run.inferred, ended)
            lane.tally.ran(len(good), answered, arrived, queued, *times)

    def _fail(self, lane: _Lane, task: Task, error: Exception) -> None:
        lane.tally.failed(monotonic() - task.received)
        task.failed(error)
        error.__traceback__ = None  # its frames hold the task, and that the run that holds it
