"""What executors do with rows that wait for windows: lay them down, walk their keys, go on.

A micro-batch's rows lie in files, a home for the rows of each task that read records. Beside them
lie the narrow columns: where a row's message was, when it asks, and for each track its key, its
value and when that became known. The driver puts all rows in one order and says which are late,
from the times alone. Then each part of the keys is walked by the kernel, from the states that its
keys had, and each home picks its rows' answers up.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from drivetrain.core.batch import Array
from drivetrain.core.schema import Field
from drivetrain.core.tracks import TELL, Tracks
from drivetrain.events.follow.cleaning import Cleaned
from drivetrain.events.spark.homes import PLACES, Home, lay, narrow_of
from drivetrain.events.spark.landing import Landing, Records, Report, told
from drivetrain.events.spark.segments import Cut, Segment
from drivetrain.events.table import Table
from drivetrain.events.topic.messages import Refused, Rows
from drivetrain.events.windowed.backfill import column_of
from drivetrain.events.windowed.keyed import Keyed, opened, part_of

# -- records ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Gather(Landing):
    """Makes rows of records, up to the first windows.

    Attributes:
        segments: the steps, cut at their windows.
        scratch: where files lie for the time of a micro-batch.
    """

    segments: Sequence[Segment] = ()
    scratch: Path = field(default_factory=Path)

    @property
    def parts(self) -> Sequence[tuple[Table, Sequence[str]]]:
        return [(segment.table, segment.names) for segment in self.segments]

    def _land(self, batches: Any) -> Report:
        gathered = _Gathered()
        report = self.take(batches, gathered.add)
        if not gathered.tables:
            return report
        rows = pa.concat_tables(gathered.tables)
        if not len(rows):
            return report
        cut = self.segments[0].cut
        assert cut is not None
        narrow = narrow_of(cut, rows, gathered.places)
        records = ""
        if not all(segment.bare for segment in self.segments[1:]):
            records = lay(self.scratch, pa.concat_tables(gathered.records))
        home = Home(lay(self.scratch, rows), lay(self.scratch, narrow), records)
        return replace(report, laid=asdict(home))


@dataclass
class _Gathered:
    tables: list[pa.Table] = field(default_factory=list[pa.Table])
    records: list[pa.Table] = field(default_factory=list[pa.Table])
    _places: list[list[Array]] = field(default_factory=list[list[Array]])
    _latest: dict[int, int] = field(default_factory=dict[int, int])
    _messages: int = 0

    def add(self, messages: Records, found: Cleaned) -> None:
        """The next messages, and the rows that they became."""
        self.tables.append(found.table)
        self.records.append(messages.table)
        clocks, of = messages.times().copy(), messages.partitions
        for number in np.unique(of).tolist():
            mine = of == number
            begun = self._latest.get(number, -1)
            clocks[mine] = np.maximum(np.maximum.accumulate(clocks[mine]), begun)
            self._latest[number] = int(clocks[mine][-1])
        origin = found.origin
        columns = [clocks[origin], of[origin], messages.offsets[origin], origin + self._messages]
        self._places.append(columns)
        self._messages += len(messages)

    @property
    def places(self) -> dict[str, Array]:
        """The columns :data:`PLACES` of all rows."""
        columns = map(np.concatenate, zip(*self._places, strict=True))
        return dict(zip(PLACES, columns, strict=True))


# -- keys ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walked:
    """What became of a part of the keys.

    Attributes:
        part: its number.
        answers: for each track the file of the rows' windows.
        files: those that the keys' states then lie in.
        problem: what ended it, as the name of the error and its text.
    """

    part: int
    answers: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    problem: tuple[str, str] | None = None

    def to_json(self) -> str:
        """A text that :meth:`from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What became ``text``."""
        data = json.loads(text)
        return cls(data["part"], tuple(data["answers"]), tuple(data["files"]), data["problem"])


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Walks parts of the keys through the rows of a micro-batch.

    Attributes:
        cut: the windows.
        homes: where the rows lie.
        states: of the keys before the micro-batch, one for each part.
        scratch: where answers are written.
    """

    cut: Cut
    homes: Sequence[Home]
    states: Sequence[Keyed]
    scratch: Path

    def __call__(self, part: int) -> str:
        """One part, by its number."""
        try:
            return self._walk(part).to_json()
        except (ValueError, OSError, MemoryError) as error:
            return Walked(part, problem=(type(error).__name__, str(error))).to_json()

    def _walk(self, part: int) -> Walked:
        tracks = Tracks(self.cut.windows, self.cut.reads, 1)
        tables = [(opened(home.narrow), opened(home.order)) for home in self.homes]
        answers: list[str] = []
        states: list[tuple[Array, Sequence[bytes]]] = []
        for number in range(len(tracks.tracks)):
            rows = self._rows(number, part, tables)
            found, state = self._track(tracks, number, part, rows)
            answers.append(lay(self.scratch, pa.table(found)))
            states.append(state)
        return Walked(part, tuple(answers), self.states[part].add(states).files)

    def _rows(
        self, track: int, part: int, tables: Sequence[tuple[pa.Table, pa.Table]]
    ) -> dict[str, Array]:
        """The rows whose key in a track is in a part, in order."""
        names = [f"{name} {track}" for name in ("high", "low", "told", "value")]
        found: list[dict[str, Array]] = []
        for home, (narrow, order) in enumerate(tables):
            low, rank = narrow[f"low {track}"].to_numpy(), order["rank"].to_numpy()
            mine = np.flatnonzero((part_of(low, len(self.states)) == part) & (rank >= 0))
            columns = {
                name: narrow[name] for name in ("asked", *names) if name in narrow.schema.names
            }
            columns |= {"rank": order["rank"], "kind": order[f"kind {track}"]}
            taken = {name.partition(" ")[0]: c.to_numpy()[mine] for name, c in columns.items()}
            found.append({**taken, "row": mine, "home": np.full(len(mine), home, np.int32)})
        whole = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
        order = np.argsort(whole["rank"], kind="stable")
        return {name: column[order] for name, column in whole.items()}

    def _track(
        self, tracks: Tracks, track: int, part: int, rows: dict[str, Array]
    ) -> tuple[dict[str, Any], tuple[Array, Sequence[bytes]]]:
        """The windows of rows, and the states that the keys of one track have behind them."""
        keys = np.stack((rows["high"], rows["low"]), axis=1)
        known = _different(keys)
        tracks.load_keys(track, known, self.states[part].find(track, known))
        found = tracks.run(
            track, keys, rows["asked"], rows.get("value"), rows["kind"], rows["told"]
        )
        columns: dict[str, Any] = {"home": rows["home"], "row": rows["row"]}
        for number, values in enumerate(found):
            flat = pa.array(values.reshape(-1))
            several = values.ndim > 1
            width = values.shape[1] if several else 1
            column = pa.FixedSizeListArray.from_arrays(flat, width) if several else flat
            columns[f"window {number}"] = column
        told = _different(keys[(rows["kind"] & TELL) > 0])
        blobs = tracks.dump_keys(track, told)
        there = [at for at, blob in enumerate(blobs) if blob]
        return columns, (told[there], [blobs[at] for at in there])


def _different(keys: Array) -> Array:
    """Each key once that is not missing."""
    keys = keys[keys.any(axis=1)]
    keys = keys[np.lexsort((keys[:, 1], keys[:, 0]))]
    first = np.ones(len(keys), bool)
    first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    return keys[first]


# -- rows with their windows -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GoOn:
    """Takes the rows of homes with their windows through the steps behind.

    Attributes:
        gather: of the micro-batch.
        stage: which windows they have waited for, from 0.
        homes: where the rows lie.
        answers: of each part the files of the windows of each track.
        refused: of each home the messages that are left out, and why.
    """

    gather: Gather
    stage: int
    homes: Sequence[Home]
    answers: Sequence[Sequence[str]]
    refused: Sequence[Mapping[int, str]]

    def __call__(self, home: int) -> str:
        """One home, by its number."""
        return told(lambda: self._go_on(home))

    def _go_on(self, home: int) -> Report:
        gather, at = self.gather, self.homes[home]
        rank = opened(at.order)["rank"].to_numpy()
        kept = pa.array(np.flatnonzero(rank >= 0))
        narrow = opened(at.narrow).select(list(PLACES)).take(kept)
        rows = self._with_windows(home, opened(at.rows)).take(kept)
        cleaning, reads = gather.ready.cleaning(self.stage + 1), gather.ready.plan(self.stage + 1)
        message = narrow["message"].to_numpy()
        found = cleaning(Rows(rows.select(list(reads.reads.names)), message))
        if found.refused:
            gather.fitting(found, self._messages(at))
            return Report(refused={item.message: item.reason for item in found.refused})
        cut = gather.segments[self.stage + 1].cut
        if cut is None:
            return self._end(home, found)
        first = np.searchsorted(message, found.origin)  # of the rows of a message one is as good
        places = {name: narrow[name].to_numpy()[first] for name in PLACES}
        laid = lay(gather.scratch, narrow_of(cut, found.table, places))
        return Report(laid=asdict(Home(lay(gather.scratch, found.table), laid, at.records)))

    def _end(self, home: int, found: Cleaned) -> Report:
        gather, refused = self.gather, self.refused[home]
        dead: list[pa.Table] = []
        if refused:
            items = [Refused(message, why) for message, why in sorted(refused.items())]
            dead = gather.letters(self._messages(self.homes[home]), items)
        buried = gather.bury(dead)
        return Report(
            rows=len(found.table),
            files=gather.into.lay(found.table),
            dead=sum(file.rows for file in buried),
            letters=buried,
        )

    def _messages(self, home: Home) -> Records:
        return Records.of(self.gather.stream.topic.topic, opened(home.records))

    def _with_windows(self, home: int, rows: pa.Table) -> pa.Table:
        """All rows of a home with their windows; those that are left out have others."""
        cut = self.gather.segments[self.stage].cut
        assert cut is not None
        given = {item.name: item for item in cut.windows.fields(cut.reads)}
        columns = {name: rows[name] for name in cut.keep}
        for track, declared in enumerate(cut.windows.tracks):
            parts = [opened(files[track]) for files in self.answers]
            mine = [np.flatnonzero(part["home"].to_numpy() == home) for part in parts]
            at = [part["row"].to_numpy()[own] for part, own in zip(parts, mine, strict=True)]
            for number, (name, _) in enumerate(declared.windows):
                values = _empty(given[name], len(rows))
                for part, own, row in zip(parts, mine, at, strict=True):
                    values[row] = _values(part[f"window {number}"])[own]
                columns[name] = column_of(values, given[name])
        return pa.table({name: columns[name] for name in (*cut.keep, *cut.windows.names)})


def _empty(given: Field, rows: int) -> Array:
    return np.zeros((rows, *(size or 0 for size in given.shape)), given.numpy)


def _values(column: Any) -> Array:
    whole = column.combine_chunks()
    whole = whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)
    if pa.types.is_fixed_size_list(whole.type):
        flat, width = whole.flatten(), whole.type.list_size
        return flat.to_numpy(zero_copy_only=False).reshape(len(whole), width)
    return whole.to_numpy(zero_copy_only=False)
