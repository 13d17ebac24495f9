"""Follows a topic on Spark: executors make rows of messages and lay them down, the driver commits.

What Spark keeps of a query lives as long as the query. Where the stream stands is in the table
alone, in the commit of the rows, so there are no two answers to where it goes on.
"""

import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.metric import Emit, silent
from drivetrain.core.need import need
from drivetrain.core.schema import Schema
from drivetrain.core.site import EngineSite
from drivetrain.core.spark import session
from drivetrain.events.duckdb import Engine, Limits, engine
from drivetrain.events.follow.dead import SCHEMA, Buried
from drivetrain.events.follow.following import OFTEN, PAUSES, REFRESH, Follower, only_one
from drivetrain.events.follow.pace import STATUS, Pace
from drivetrain.events.follow.telling import Telling
from drivetrain.events.lake.lake import Lake
from drivetrain.events.spark.incoming import records_of, told
from drivetrain.events.spark.landing import REPORT, Landing, Report, Target
from drivetrain.events.spark.segments import segments
from drivetrain.events.spark.walk import Gather
from drivetrain.events.spark.windowing import Windowing
from drivetrain.events.stream import Stream

KAFKA = ("python", "connector")
"""How Spark reads a topic."""

TRIES = 5
"""How often what Spark fails at by itself is tried again before the run ends."""

LOOK = 200
"""Milliseconds between two looks whether the query runs and whether it is to end."""

_ERRORS: Mapping[str, type[Exception]] = {
    error.__name__: error
    for error in (
        ConnectionError,
        FileNotFoundError,
        PermissionError,
        OSError,
        ValueError,
        MemoryError,
        ImportError,
    )
}
_RAISED = re.compile(rf"^(?:\w+: )?({'|'.join(_ERRORS)}|ModuleNotFoundError): (.*)$", re.MULTILINE)


class LostError(Exception):
    """Spark failed by itself, as when an executor is lost; the same may do well again."""


def _errors() -> tuple[type[Exception], ...]:
    """What the driver's side of Spark raises."""
    spark, wire = need("pyspark.errors", "spark"), need("py4j.protocol", "spark")
    return spark.PySparkException, wire.Py4JError


def follow(
    stream: Stream,
    room: Path,
    site: EngineSite,
    *,
    emit: Emit = silent,
    stop: Event | None = None,
    from_start: bool = False,
    to_end: bool = False,
    token: str | None = None,
) -> Pace:
    """Append what comes to a stream's topic to its table, until it is told to stop.

    The same as ``events.following.follow`` in one process, and either goes on where the other
    stopped.

    Args:
        stream: what to do.
        room: a directory of its own on the driver: what others look at.
        site: the session of Spark; executors must have drivetrain, reach the brokers and write
            where the tables lie.
        emit: hears of each batch, and of what it waits for.
        stop: once it is set, the batch that was begun is committed, and that was it.
        from_start: accept that the topic was made anew, or that messages have expired unread: read
            what there is from its beginning.
        to_end: stop behind the messages that there are at the beginning.
        token: what the servers that are told ask their clients for, if anything.

    Returns:
        What was done.

    Raises:
        ImportError: pyspark is not installed.
        OSError: there is no such topic, it may not be read, or the table cannot be written.
        ConnectionError: no cluster answers.
        ValueError: the declaration does not fit, or asks for what is not done on Spark; a message
            does not fit, and there is no table for such; the topic is not the one that the table
            was written from; another runner writes.
    """
    check(site)
    room.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(only_one(room, stream.name))
        pace = Pace(stream.name, stream.topic.topic, emit, room / STATUS)
        # Spark runs the steps; what servers are told, this process reads again by itself, and what
        # windows know where that was not kept.
        running = stack.enter_context(engine(Limits(threads=1)))
        with pace.beginning():
            follower = SparkFollower(stream, running, pace, emit, stop or Event(), token)
            stack.callback(follower.close)
            follower.spark = stack.enter_context(session(site))
        follower.site = site
        follower.run(from_start=from_start, to_end=to_end)
    return pace


def check(site: EngineSite) -> None:
    """Hold a site against what is done on Spark.

    Raises:
        ValueError: the session is one of Spark Connect, or the topic is read in an unknown way.
    """
    if site.kafka not in KAFKA:
        raise unknown("way", site.kafka, KAFKA, "[engine] kafka")
    if site.master.startswith("sc://"):
        allowed = "local, local[n] or spark://host:port: the driver commits, and must be here"
        raise wrong("[engine] master", site.master, allowed)


class SparkFollower(Follower):
    """One run of a stream whose batches are Spark's.

    Attributes:
        spark: the session.
        site: that it is of.
    """

    spark: Any
    site: EngineSite

    def __init__(
        self,
        stream: Stream,
        running: Engine,
        pace: Pace,
        emit: Emit,
        stop: Event,
        token: str | None = None,
    ) -> None:
        self._turn = threading.Lock()
        self._ending = False
        self._failure: BaseException | None = None
        self._run = ""
        self._letters: Lake | None = None
        self._buried: Buried | None = None
        self._windowing: Windowing | None = None
        super().__init__(stream, running, pace, emit, stop, token)

    def _ready(self, schema: Schema) -> None:
        """Tell executors the columns of the topic: they must not find others in its head."""
        self._columns = schema
        self._told = replace(self.stream, events=told(self.stream.events))
        if self.stream.observe:
            assert self._running is not None
            self._telling = Telling(self.stream, self._running, self._token, self._warn)

    # -- a run of Spark's query ------------------------------------------------------------------

    def _loop(self) -> None:
        self._grow()
        self._patiently(self._restore)
        pause, lost = PAUSES[0], 0
        while True:
            before = self.pace.commits
            try:
                self._query()
                while self._due is not None and not self._stop.is_set() and not self._tell():
                    continue
                return
            except (ConnectionError, LostError) as error:
                if self._stop.is_set():  # what asked us to end may have asked the JVM too
                    return
                self._alive(error)
                if self.pace.commits > before:
                    pause, lost = PAUSES[0], 0
                lost += isinstance(error, LostError)
                if lost > TRIES:
                    raise OSError(f"{error}; it was tried {TRIES} times more") from None
                self._say(f"{error}: waiting for it")
            if self._stop.wait(pause):
                return
            pause = min(2 * pause, PAUSES[1])

    def _restore(self) -> None:
        """Know what the windows knew where the table stands, if the steps have any."""
        cut = segments(self._told.events, self._columns.names)
        if len(cut) == 1:
            return
        parts = self.spark.sparkContext.defaultParallelism
        asked = "spark.default.parallelism" in self.site.conf
        windowing = Windowing(cut, self.pace.path.parent, parts, exactly=asked)
        windowing.restore(self._places, self.at, self._remembered)
        self._windowing = windowing

    def _remembered(self) -> bytes:
        """The state that the embedded runner would have where the table stands."""
        self._steps(self._columns)
        return self._recall.restore(self._places, self.at)

    def _alive(self, error: Exception) -> None:
        """Hold that the session is there still.

        Raises:
            OSError: it is not.
        """
        errors = need("py4j.protocol", "spark")
        try:
            stopped = self.spark.sparkContext._jsc.sc().isStopped()
        except (errors.Py4JError, OSError, AttributeError):
            stopped = True
        if stopped:
            raise OSError(f"the driver's session of Spark has ended: {error}") from None

    def _grow(self) -> None:
        """Give the table the columns that it lacks, before files have them."""
        names = self._lake.due.names
        if missing := [field for field in self._columns if field.name not in names]:
            from drivetrain.events.reading.arrow import arrow_schema

            self._lake.append(arrow_schema(Schema(tuple(missing))).empty_table())

    def _query(self) -> None:
        """Run micro-batches until there is reason to end."""
        self._hold()
        self._run, self._ending, self._failure = uuid.uuid4().hex, False, None
        if self.stream.dead is not None:
            self._letters = Lake.open(str(self.stream.dead), SCHEMA)
            ends = self._places.positions(self._letters.positions(self.stream.name))
            self._buried = Buried(self._letters.path, ends, dict(self.at))
        with tempfile.TemporaryDirectory(prefix="drivetrain-query-") as scratch:
            with self._named():
                query = self._start(Path(scratch))
            try:
                with self._named():
                    self._watch(query)
            finally:
                with self._turn:  # a batch that was begun is committed first
                    self._ending = True
                with suppress(*_errors()):  # it may have ended by itself, and its JVM with it
                    query.stop()

    def _hold(self) -> None:
        """Hold that the topic goes on where the table stands, and know what partitions it has now.

        Raises:
            ConnectionError: no broker answers.
            OSError: the topic is gone, or may not be read any longer.
            ValueError: it was made anew, or messages have expired unread.
        """
        self._same()
        bounds = {number: self._topic.bounds(number) for number in self._topic.partitions()}
        for number, at in sorted(self.at.items()):
            low, high = bounds.get(number, (0, 0))
            if not low <= at <= high:
                error = self._topic.absent(number, at, low, high)
                raise ValueError(f"{error} --from-start goes on with what there is.")
        self.at |= self._topic.starts([number for number in bounds if number not in self.at])

    def _start(self, scratch: Path) -> Any:
        rows = records_of(self.spark, self.stream, self.site, self.at)
        write = rows.writeStream.foreachBatch(self._batch)
        write = write.option("checkpointLocation", scratch.as_uri())
        if self._due is not None:
            return write.trigger(availableNow=True).start()
        every = f"{max(round(self.stream.seconds * 1000), 1)} milliseconds"
        return write.trigger(processingTime=every).start()

    def _watch(self, query: Any) -> None:
        while not query.awaitTermination(LOOK / 1000):
            self._look()
            self._tell()
            if self._stop.is_set():
                return

    @contextmanager
    def _named(self) -> Generator[None]:
        """What Spark raises as what was raised in the batch, or in one of its processes."""
        try:
            yield
        except _errors() as error:
            raise self._failure or raised(str(error)) from None

    # -- a batch ---------------------------------------------------------------------------------

    def _batch(self, records: Any, number: int) -> None:
        """Let executors lay a micro-batch down, then commit it; called by Spark."""
        with self._turn:
            if self._ending:
                return
            try:
                self._land(records)
            except _errors() as error:
                self._failure = raised(str(error))  # which it can no longer say later
                raise
            except BaseException as error:
                self._failure = error
                raise

    def _land(self, records: Any) -> None:
        windowing = self._windowing
        landing = (Landing if windowing is None else Gather)(
            run=self._run,
            stream=self._told,
            columns=self._columns.names,
            into=Target.of(self._lake),
            dead=None if self._letters is None else Target.of(self._letters),
            limits=Limits(memory=self.site.memory, threads=1),
            at=dict(self.at),
            buried=self._buried,
        )

        def take(landing: Landing) -> list[Report]:
            found = records.mapInArrow(lambda batches: landing(batches), REPORT).collect()
            return [Report.from_json(row["report"]) for row in found]

        if windowing is None:
            reports = held(take(landing))
        else:
            assert isinstance(landing, Gather)
            reports = windowing.batch(landing, take, partial(each, records.sparkSession), held)
        if any(report.messages for report in reports):
            try:
                self._commit_reports(reports)
            except ConnectionError as error:  # it may have landed: only the table knows
                raise OSError(str(error)) from error

    def _commit_reports(self, reports: list[Report]) -> None:
        """Commit what executors laid down: what does not fit first, then the rows."""
        behind: dict[int, int] = {}
        for report in reports:
            behind |= report.behind
        reports.sort(key=lambda report: min(report.behind, default=-1))
        name, kept = self.stream.name, self._places.kept(behind, self._identity)
        if letters := [file for report in reports for file in report.letters]:
            assert self._letters is not None
            assert self._buried is not None
            past = self._buried.past(behind)
            self._letters.commit_files(letters, name, self._places.kept(past))
            self._buried = replace(self._buried, ends={**self._buried.ends, **past})
        files = [file for report in reports for file in report.files]
        if self._windowing is not None:
            self._windowing.ready(self._places, {**self.at, **behind})
        version = self._lake.commit_files(files, name, kept)
        self.at |= behind
        if self._windowing is not None:
            self._windowing.keep()
        self._topic.tell(behind)
        self.pace.problem = None
        self.pace.batch(
            sum(report.messages for report in reports),
            sum(report.rows for report in reports),
            sum(report.dead for report in reports),
            version,
            np.array([time for report in reports for time in report.times], np.int64),
        )

    # -- what it says ----------------------------------------------------------------------------

    def _tell(self) -> bool:
        """Tell servers what they lack, read again here; whether none lacks anything now."""
        return self._telling is None or self._telling.tell(self._places, dict(self.at))

    def _look(self, *, now: bool = False) -> None:
        at = time.monotonic()
        if at - self._looked >= REFRESH:
            self._looked = at
            self._same()
        if not now and at - self._shown < OFTEN:
            return
        self._shown = at
        positions, lag = dict(self.at), dict[int, int]()
        with suppress(OSError):  # executors tell that the brokers are gone
            for partition in set(self._topic.partitions()) & positions.keys():
                end = self._topic.bounds(partition)[1]
                lag[partition] = max(end - positions[partition], 0)
        self.pace.look(positions, lag, ended=False)


def each(spark: Any, count: int, task: Callable[[int], str]) -> list[str]:
    """What a task gives for each number below ``count``, run by executors."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            found = [task(number) for number in batch.column(0).to_pylist()]
            yield pa.record_batch({"report": pa.array(found, pa.string())})

    found = spark.range(0, count, 1, count).mapInArrow(run, REPORT).collect()
    return [row["report"] for row in found]


def held(reports: Sequence[Report]) -> list[Report]:
    """Reports that have no problem.

    Raises:
        Exception: the problem of the first one that has one.
    """
    for report in reports:
        if report.problem is not None:
            name, text = report.problem
            raise _ERRORS.get(name, OSError)(text)
    return list(reports)


def raised(text: str) -> Exception:
    """What Python raised in one of Spark's processes, out of what Spark says of it."""
    found = _RAISED.findall(text)
    if not found:
        return LostError(f"Spark: {text.strip().splitlines()[0] if text.strip() else 'ended'}")
    name, reason = found[-1]
    return _ERRORS.get(name, ImportError)(reason)
