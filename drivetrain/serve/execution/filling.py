"""What a bundle with windows asks of a request, and what must be kept to fill the rest in."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

from drivetrain.core.batch import Array
from drivetrain.core.bundle import Manifest
from drivetrain.core.describe import canonical
from drivetrain.core.errors import wrong
from drivetrain.core.schema import Field, Schema
from drivetrain.core.window import FORGOTTEN, Track, Windows, microseconds_of
from drivetrain.serve.execution.live import Learning


class AwayError(Exception):
    """What is kept cannot be asked or added to for now; says why."""


class Lookup(Protocol):
    """Gives the windows of rows."""

    def __call__(
        self, arrays: Sequence[Array], then: Callable[[Sequence[Array] | Exception], object]
    ) -> None:
        """Call ``then``, at once or later, on the loop's thread on which this is called.

        Args:
            arrays: the columns that a request brings, ``[rows]`` each, in the order of
                :attr:`Filling.given`.
            then: given the windows, ``[rows, …]`` each, in the order of :attr:`Filling.filled`;
                or why there are none.
        """
        ...


@dataclass(frozen=True)
class Kept:
    """Observations that some windows are read off, as they are kept.

    Attributes:
        windows: those windows; all of one :class:`drivetrain.core.window.Track`.
        schema: the columns that it observes and is asked with.
    """

    windows: Windows
    schema: Schema

    @cached_property
    def track(self) -> Track:
        """What it is of."""
        (track,) = self.windows.tracks
        return track

    @property
    def known(self) -> str:
        """The column of when a row became known."""
        return self.track.known

    @cached_property
    def digest(self) -> str:
        """Its name: what has the same name holds the same observations."""
        return hashlib.sha256(canonical(self.to_json()).encode()).hexdigest()[:32]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """What a row must have to be observed."""
        return self.windows.observed

    @cached_property
    def horizon(self) -> int | None:
        """Microseconds after which an observation can give nothing more; None for never."""
        longest = 0
        for _, window in self.track.windows:
            if window.over is not None:
                length = microseconds_of(window.over, "over")
            elif window.half_life is not None:
                length = FORGOTTEN * microseconds_of(window.half_life, "half_life")
            else:
                return None
            longest = max(longest, length)
        return longest + self.track.resolution + self.windows.lateness

    def __str__(self) -> str:
        value = "rows" if self.track.value is None else self.track.value
        return f"{value} by {', '.join(self.track.keys)}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"windows": self.windows.to_json(), "schema": self.schema.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Kept":
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        return cls(Windows.from_json(data["windows"]), Schema.from_json(data["schema"]))


@dataclass(frozen=True)
class Filling:
    """How the windows of a bundle come into its rows.

    Attributes:
        given: the columns that a request brings.
        filled: the windows, which the server puts behind them.
        kept: what they are read off.
    """

    given: Schema
    filled: Schema
    kept: tuple[Kept, ...]

    @property
    def whole(self) -> Schema:
        """All columns of a row that is filled in."""
        return Schema((*self.given, *self.filled))

    @classmethod
    def of(cls, manifest: Manifest) -> "Filling | None":
        """That of a bundle; None where it has no windows.

        Raises:
            ValueError: its windows do not give what its graph takes.
        """
        if not manifest.windows:
            return None
        inputs, schema = manifest.inputs, manifest.window_schema
        windows = Windows.from_json(manifest.windows).select(inputs.names)
        if not windows.columns:
            return None
        filled = windows.fields(schema)
        for field in filled:
            if inputs.field(field.name) != field:
                found = inputs.field(field.name)
                raise wrong(f"window {field.name!r} as an input", found, str(field))
        given = [field for field in inputs if field.name not in windows.names]
        given += [schema.field(name) for name in windows.asked if name not in inputs]
        kept: list[Kept] = []
        for track in windows.tracks:
            alone = Windows(windows.time, track.windows, windows.lateness)
            names = dict.fromkeys((*alone.asked, *alone.observed))
            kept.append(Kept(alone, schema.select(names)))
        # In the order of the tracks, as they give them: nobody has to sort what was read.
        ordered = {field.name: field for field in filled}
        behind = Schema(tuple(ordered[name] for each in kept for name in each.windows.names))
        return cls(Schema(tuple(given)), behind, tuple(kept))


Fed: TypeAlias = Kept | Learning
"""What rows are observed for: a track, or what learns in a graph."""


def observed_by(fed: Sequence[Fed]) -> Schema:
    """The columns that some tracks and learners observe.

    Raises:
        ValueError: they hold one column for different things.
    """
    columns: dict[str, Field] = {}
    for each in fed:
        for field in each.schema.select(each.columns):
            known = columns.setdefault(field.name, field)
            if known != field:
                where = f"observed column {field.name!r}, for {each}"
                raise wrong(where, field.dtype, f"{known.dtype}, as others observe it")
    return Schema(tuple(columns.values()))
