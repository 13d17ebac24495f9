"""Windows of a stream on Spark: micro-batches walked by executors, their states kept by the driver.

A micro-batch takes three of Spark's jobs: records become rows, keys are walked, rows go on with
their windows; and two more for each further step with windows. The driver sees of a row when it
asks and when what it tells became known, and nothing else. States that a micro-batch brings are
files beside those before it. They count once the table has its commit: what is written down of
them before names the positions that the commit brings.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree

from drivetrain.core.durable import scratch
from drivetrain.core.key_states import digest_of
from drivetrain.core.tracks import Tracks
from drivetrain.events.spark.homes import Home, ordered
from drivetrain.events.spark.landing import Report
from drivetrain.events.spark.segments import Cut, Segment
from drivetrain.events.spark.walk import Gather, GoOn, Walk, Walked
from drivetrain.events.topic.places import Places
from drivetrain.events.windowed.keyed import Keyed
from drivetrain.events.windowed.standing import (
    FOLDER,
    Standing,
    States,
    found_in,
    keep_only,
    path_of,
    states_of,
)

SCRATCH = "batch-"
"""What the folder of a micro-batch's files begins with."""

Each = Callable[[int, Callable[[int], str]], Sequence[str]]
"""Runs a task for each number below the first argument on executors; what they gave."""

Held = Callable[[Sequence[Report]], Sequence[Report]]
"""Raises the problem of a report that has one."""


@dataclass
class Windowing:
    """The windows of one run of a stream.

    Attributes:
        segments: the steps, cut at their windows.
        room: the directory of the stream's runner, which all executors see.
        parts: into how many the keys are divided where no states are kept.
        exactly: whether states that are kept have to be divided so too.
        stands: what the windows know at the table's positions.
    """

    segments: Sequence[Segment]
    room: Path
    parts: int
    exactly: bool = False
    stands: list[States] = field(default_factory=list[States])
    _next: list[States] = field(default_factory=list[States])
    _written: Standing | None = None

    @property
    def folder(self) -> Path:
        """Where states lie, and the files of a micro-batch while it runs."""
        return self.room.absolute() / FOLDER

    @property
    def cuts(self) -> list[Cut]:
        """The windows of each step."""
        return [segment.cut for segment in self.segments if segment.cut is not None]

    # -- where it stands -------------------------------------------------------------------------

    def restore(self, places: Places, at: Mapping[int, int], make: Callable[[], bytes]) -> None:
        """Know what the windows knew at these positions.

        Args:
            places: how positions are named.
            at: the table's.
            make: makes the plan's state at these positions where it was not kept.

        Raises:
            OSError: the disk is full, or the messages that it is made from cannot be read.
        """
        self.folder.mkdir(exist_ok=True)
        for left in (*self.folder.glob(f"{SCRATCH}*"), *self.folder.glob(".*")):
            rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        there = [one for one in found_in(self.folder) if self._fits(one, places, at)]
        if there:
            self.stands = list(there[0].steps)
        else:
            labels = [cut.label for cut in self.cuts]
            self.stands = states_of(make(), labels, self.folder, self.parts)
        self._next = self.stands

    def _fits(self, one: Standing, places: Places, at: Mapping[int, int]) -> bool:
        digests = [digest_of(Tracks(cut.windows, cut.reads, 1).dump()) for cut in self.cuts]
        return (
            one.topic == places.identity
            and dict(one.positions) == dict(at)
            and [step.label for step in one.steps] == [cut.label for cut in self.cuts]
            and [step.digest for step in one.steps] == digests
            and not (self.exactly and any(len(step.parts) != self.parts for step in one.steps))
            and one.whole
        )

    def ready(self, places: Places, at: Mapping[int, int]) -> None:
        """Write down what the windows know behind the micro-batch; its commit comes next.

        Raises:
            OSError: the disk is full.
        """
        path = path_of(self.folder, places, at)
        self._written = Standing(path, places.identity, dict(at), self._next)
        self._written.write()

    def keep(self) -> None:
        """The commit is there: what was before it is of no use any more."""
        assert self._written is not None
        self.stands = self._next
        with suppress(OSError):  # what is left lies there until the next time
            keep_only(self.folder, [self._written])
            for path in self.room.glob("state-*.bin"):  # of a run in one process
                path.unlink(missing_ok=True)

    # -- a micro-batch ---------------------------------------------------------------------------

    def batch(
        self, gather: Gather, take: Callable[[Gather], Sequence[Report]], each: Each, held: Held
    ) -> list[Report]:
        """Have executors lay a micro-batch down, windows and all.

        Args:
            gather: what they are told of it.
            take: runs it over the records.
            each: runs tasks.
            held: raises what went wrong in them.
        """
        with scratch(self.folder, f"{SCRATCH}{uuid.uuid4().hex}") as folder:
            gather = replace(gather, segments=self.segments, scratch=folder)
            reports = list(held(take(gather)))
            homes = [Home(**report.laid) for report in reports if report.laid]
            self._next = self.stands
            ended = _Homes(self, gather, each, held).ended(homes) if homes else []
        done = iter(ended)
        return [_with(report, next(done)) if report.laid else report for report in reports]


def _with(report: Report, ended: Report) -> Report:
    return replace(
        report,
        rows=ended.rows,
        files=ended.files,
        dead=report.dead + ended.dead,
        letters=(*report.letters, *ended.letters),
    )


@dataclass
class _Homes:
    """The rows of one micro-batch on their way."""

    windowing: Windowing
    gather: Gather
    each: Each
    held: Held

    def ended(self, homes: Sequence[Home]) -> list[Report]:
        """The reports on all homes; of a message that a step fails on, windows have seen nothing.

        So where a step behind windows refuses messages all begins anew, without them.
        """
        refused: list[dict[int, str]] = [{} for _ in homes]
        while True:
            reports = self._through(homes, refused)
            if not any(report.refused for report in reports):
                return reports
            for known, report in zip(refused, reports, strict=True):
                known |= report.refused

    def _through(self, homes: Sequence[Home], refused: Sequence[Mapping[int, str]]) -> list[Report]:
        found: list[States] = []
        reports: list[Report] = []
        for stage, cut in enumerate(self.windowing.cuts):
            before = self.windowing.stands[stage]
            homes, watermarks = ordered(self.gather.scratch, cut, homes, before.watermarks, refused)
            answers, parts = self._walked(cut, homes, before)
            found.append(replace(before, watermarks=watermarks, parts=parts))
            go_on = GoOn(
                gather=self.gather, stage=stage, homes=homes, answers=answers, refused=refused
            )
            reports = list(self.held(list(map(Report.from_json, self.each(len(homes), go_on)))))
            if any(report.refused for report in reports):
                return reports
            homes = [Home(**report.laid) for report in reports if report.laid]
        self.windowing._next = found
        return reports

    def _walked(
        self, cut: Cut, homes: Sequence[Home], before: States
    ) -> tuple[list[tuple[str, ...]], tuple[Keyed, ...]]:
        walk = Walk(cut=cut, homes=homes, states=before.parts, scratch=self.gather.scratch)
        found = [Walked.from_json(text) for text in self.each(len(before.parts), walk)]
        self.held([Report(problem=one.problem) for one in found])
        found.sort(key=lambda one: one.part)
        folder = self.windowing.folder
        return [one.answers for one in found], tuple(Keyed(folder, one.files) for one in found)
