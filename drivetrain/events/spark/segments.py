"""A table's steps cut at its windows: what lies between needs no rows but its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from drivetrain.core.schema import Schema
from drivetrain.core.window import Windows
from drivetrain.events.plan import outline
from drivetrain.events.spark.held import Held
from drivetrain.events.table import Step, Table
from drivetrain.events.windows import WithWindows


@dataclass(frozen=True)
class Cut:
    """Windows between two segments.

    Attributes:
        windows: those that are needed.
        reads: the columns that they ask for and observe.
        keep: the other columns that go on.
        label: the step, as it was written.
    """

    windows: Windows
    reads: Schema
    keep: Sequence[str]
    label: str


@dataclass(frozen=True)
class Segment:
    """Steps that remember no rows.

    Attributes:
        table: they, on the topic or on what stands for rows with windows.
        names: the columns that are wanted of it.
        cut: the windows behind it; None behind the last one.
    """

    table: Table
    names: Sequence[str]
    cut: Cut | None = None

    @property
    def bare(self) -> bool:
        """Whether there is no step in it."""
        return not self.table.chain()[1]


def segments(table: Table, names: Sequence[str]) -> tuple[Segment, ...]:
    """The steps of a table in order, up to each ``with_windows``, and those behind the last.

    Args:
        table: the plan.
        names: the columns that are wanted of it.

    Raises:
        ValueError: a step does not fit the columns.
        OSError: a file is absent or may not be read.
    """
    leaf, steps = table.chain()
    at = max((n for n, s in enumerate(steps) if isinstance(s, WithWindows)), default=None)
    if at is None:
        return (Segment(table, tuple(names)),)
    step = steps[at]
    assert isinstance(step, WithWindows)
    before = step.source.schema
    behind = _on(Held(has=step.output(before), time=leaf.time), steps[at + 1 :])
    needs = outline(behind, names, split=False).reads.names
    windows = step.windows.select(needs)
    if not windows.columns:
        return segments(_on(step.source, steps[at + 1 :]), names)
    keep = tuple(name for name in needs if name not in windows.names)
    reads = before.select(dict.fromkeys((*windows.asked, *windows.observed)))
    wanted = [name for name in before.names if name in {*keep, *reads.names}]
    *first, last = segments(step.source, wanted)
    cut = Cut(windows, reads, keep, step.label)
    return (*first, replace(last, cut=cut), Segment(behind, tuple(names)))


def _on(table: Table, steps: Sequence[Step]) -> Table:
    for step in steps:
        table = replace(step, source=table)
    return table
