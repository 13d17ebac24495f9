"""The step that gives rows their windows, and which of them a server has to keep by itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from drivetrain.core.errors import wrong
from drivetrain.core.schema import Schema, check_served
from drivetrain.core.seams import Source
from drivetrain.core.window import Length, Window, Windows, microseconds_of
from drivetrain.events.dialect.operators import columns_of
from drivetrain.events.table import Drop, Rename, Select, Step, Table, WithColumns


def declared(
    table: Table, time: str | None, lateness: Length | None, columns: dict[str, Window]
) -> Windows:
    """The windows of a step.

    Raises:
        ValueError: there is none, one is something else, or nobody says when a row is asked.
    """
    if not columns:
        raise wrong("with_windows", "no column", "at least one, such as spent=Window(…)")
    for name, window in columns.items():
        if not isinstance(window, Window):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise wrong(f"with_windows({name}=…)", window, "a Window")
    time = table.time if time is None else time
    if time is None:
        allowed = "a column, or time= on what the table starts from"
        raise wrong("with_windows time", time, allowed)
    late = 0 if lateness is None else microseconds_of(lateness, "with_windows lateness")
    return Windows(time, tuple(columns.items()), late)


@dataclass(frozen=True, eq=False)
class WithWindows(Step):
    """Adds what is known of earlier rows with the same key, at each row's time."""

    windows: Windows

    @property
    def label(self) -> str:
        return f"with_windows({', '.join(f'{name}=…' for name in self.windows.names)})"

    def output(self, schema: Schema) -> Schema:
        return Schema((*schema, *self.windows.fields(schema)))

    def required(self, needed: frozenset[str], schema: Schema) -> frozenset[str]:
        wanted = self.windows.select(tuple(needed))
        kept = needed - set(self.windows.names)
        return kept | {*wanted.asked, *wanted.observed} if wanted.columns else kept


# -- what a server keeps ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """The windows that a server keeps for a system.

    Attributes:
        windows: those that reach the features.
        step: where they are declared; the columns that they read are as they are before it.
    """

    windows: Windows
    step: WithWindows

    def among(self, columns: Sequence[str]) -> "Kept | None":
        """Those that give one of these columns; None if there is none."""
        windows = self.windows.select(columns)
        return Kept(windows, self.step) if windows.columns else None

    @property
    def schema(self) -> Schema:
        """The columns that they ask for and observe; reads the heads of the files."""
        names = dict.fromkeys((*self.windows.asked, *self.windows.observed))
        return self.step.source.schema.select(names, self.step.label)


def kept(source: Source, columns: Sequence[str]) -> Kept | None:
    """The windows among the columns that a system's features read; None if there is none.

    A server is given rows as they are after the last step and has only the windows to add. So a
    window reaches a feature as it is or not at all, and a column that both a window asks for and
    a feature reads must be the same at both places. No file is read.

    Args:
        source: the whole plan; a source that is no table has no windows.
        columns: what the features read.

    Raises:
        ValueError: a feature reads what a later step makes of a window, windows of two steps, or
            another column under the name of one that a window asks for; or no request could bring
            a column that they read under its name.
    """
    walk = _Walk()
    for step in source.chain()[1] if isinstance(source, Table) else ():
        walk.add(step)
    used = [name for name in columns if name in walk.windows]
    for name in columns:
        if name in walk.made:
            raise wrong(
                f"feature column {name!r}",
                f"what {walk.made[name]} makes of a window",
                "the window as with_windows gives it; the server could not compute it",
            )
    steps = list(dict.fromkeys(walk.windows[name] for name in used))
    if not steps:
        return None
    if len(steps) > 1:
        raise wrong(
            "the features' windows",
            " and ".join(step.label for step in steps),
            "windows of one with_windows; the server keeps one set of them",
        )
    windows = steps[0].windows.select(used)
    check_served((*windows.asked, *windows.observed))
    for name in windows.asked:
        if name in columns and name in walk.changed[steps[0]]:
            raise wrong(
                f"feature column {name!r}",
                f"what {walk.changed[steps[0]][name]} makes of it",
                f"{name!r} as {steps[0].label} reads it, or another name for what is made of it; "
                "a request has it once",
            )
    return Kept(windows, steps[0])


@dataclass
class _Walk:
    """Follows windows through the steps of a plan.

    Attributes:
        windows: the columns that are windows still, each with its step.
        made: the columns that were made of windows, each with the step that made it.
        changed: for each step with windows the columns that a later one made anew, and which.
    """

    windows: dict[str, WithWindows] = field(default_factory=dict[str, WithWindows])
    made: dict[str, str] = field(default_factory=dict[str, str])
    changed: dict[WithWindows, dict[str, str]] = field(
        default_factory=dict[WithWindows, dict[str, str]]
    )

    def add(self, step: Step) -> None:
        if isinstance(step, WithWindows):
            self._windows(step)
        elif isinstance(step, WithColumns | Rename):
            self._replaced(step)
        elif isinstance(step, Select):
            self._gone(step, [name for name in self._all() if name not in step.names])
        elif isinstance(step, Drop):
            self._gone(step, step.names)
        # the others leave rows out, or add columns of other tables under new names

    def _windows(self, step: WithWindows) -> None:
        for name in step.windows.names:
            one = step.windows.select((name,))
            if any(
                read in self.windows or read in self.made for read in (*one.asked, *one.observed)
            ):
                self.made[name] = f"with_windows({name}=…)"
            else:
                self.windows[name] = step
        self.changed[step] = {}

    def _replaced(self, step: WithColumns | Rename) -> None:
        made: dict[str, str] = {}
        for name, reads, label in _products(step):
            for changed in self.changed.values():
                changed[name] = label
            if any(read in self.windows or read in self.made for read in reads):
                made[name] = label
        for name, _, _ in _products(step):
            self.windows.pop(name, None)
            self.made.pop(name, None)
        if isinstance(step, Rename):
            self._gone(step, [old for _, old in step.columns])
        self.made |= made

    def _gone(self, step: Step, names: Sequence[str]) -> None:
        for name in names:
            self.windows.pop(name, None)
            self.made.pop(name, None)
            for changed in self.changed.values():
                changed.setdefault(name, step.label)

    def _all(self) -> list[str]:
        asked = (name for step in self.changed for name in step.windows.asked)
        return list(dict.fromkeys((*self.windows, *self.made, *asked)))


def _products(step: WithColumns | Rename) -> Iterator[tuple[str, frozenset[str], str]]:
    """Each column that a step makes, what it is made of, and how it was written."""
    if isinstance(step, Rename):
        for new, old in step.columns:
            yield new, frozenset((old,)), f"rename({new}={old!r})"
    else:
        for name, value in step.columns:
            yield name, columns_of(value), f"with_columns({name}={value!r})"
