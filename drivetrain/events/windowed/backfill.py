"""Windows for all rows of a spine, exactly and within bounded memory: laid down, sorted, walked.

What a row is told does not depend on the order of the rows, so all of them have to be read before
the first one is answered; they lie on disk meanwhile. Where they come in order of time and are
known at once, one walk over them as they come is enough. Otherwise the engine sorts the narrow
columns of a track (key, time, value) key by key, and a walk over these needs the state of one key.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain.core.batch import Array, Batch
from drivetrain.core.need import need
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.tracks import Tracks
from drivetrain.core.window import Windows
from drivetrain.events.dialect.sql import identifier
from drivetrain.events.duckdb import CHUNK, ROW, Engine
from drivetrain.events.reading.arrow import arrow_type
from drivetrain.events.windowed.order import InOrder, NotInOrderError
from drivetrain.events.windowed.spill import Rows, Values

pc = need("pyarrow.compute", "data")

ASK, TELL = 1, 2

PIECE = 1 << 18
"""So many sorted questions and observations are walked at a time."""


@dataclass
class Windowed:
    """Adds windows to the rows of a plan.

    Attributes:
        engine: sorts, and knows where rows may lie.
        windows: those that are needed.
        schema: the columns that they ask for and observe.
        keep: the other columns that go on, as SQL identifiers.
        label: the step, for errors.
        at_once: whether rows are answered as they come, where that can be, before all are there.
        tracks: what a stream has made known so far.
    """

    engine: Engine
    windows: Windows
    schema: Schema
    keep: Sequence[str]
    label: str
    at_once: bool = False
    tracks: Tracks = field(init=False)

    def __post_init__(self) -> None:
        self.tracks = self._tracks(self.windows, self.schema)

    def __call__(self, chunk: pa.Table) -> pa.Table:
        """The next rows of a stream: in the order in which they come, each asks and then tells."""
        return self._attach(chunk, self.tracks.replay(self._batch(chunk, self.schema)))

    def dump(self) -> bytes:
        """All that the rows of a stream made known."""
        return self.tracks.dump()

    def load(self, data: bytes) -> None:
        """Know that instead.

        Raises:
            ValueError: it is damaged, or of other windows.
        """
        self.tracks = Tracks.load(data, self.windows, self.schema, self.engine.threads)

    def over(self, chunks: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """All rows of a spine, table by table as they came.

        Raises:
            NotInOrderError: ``at_once``, and a row came that ought to have come earlier.
        """
        windows = replace(self.windows, lateness=0)  # nothing is late that is put in order
        if self.at_once and all(track.known == windows.time for track in windows.tracks):
            return self._as_they_come(windows, chunks)
        return self._held_back(windows, chunks)

    def _as_they_come(self, windows: Windows, chunks: Iterable[pa.Table]) -> Iterator[pa.Table]:
        walk = InOrder(self._tracks(windows, self.schema))

        def answered(chunk: pa.Table) -> pa.Table:
            return self._attach(chunk, walk.answer(self._batch(chunk, self.schema)))

        return map(answered, chunks)

    def _held_back(self, windows: Windows, chunks: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Each row once all have been read, which lie on disk meanwhile."""
        with TemporaryDirectory(prefix="windows-", dir=self.engine.directory) as name:
            folder = Path(name)
            rows = Rows(folder / "rows.arrow", self.label)
            in_order = self._in_order(windows, folder)
            for chunk in chunks:
                rows.add(chunk)
                if in_order is not None and not in_order.add(self._batch(chunk, self.schema)):
                    in_order = None
            rows.close()
            groups = [] if in_order is None else [in_order.answers]
            answered = {name for group in groups for name in group.windows.names}
            for track in windows.tracks:
                names = [name for name, _ in track.windows if name not in answered]
                if names:
                    groups.append(self._by_key(windows.select(names), rows, folder))
            start = 0
            for chunk in rows.read():
                stop = start + len(chunk)
                yield self._attach(chunk, dict(i for g in groups for i in g.take(start, stop)))
                start = stop

    def _in_order(self, windows: Windows, folder: Path) -> "_AsTheyCame | None":
        """What answers, while rows are read, the windows that are known at the row's own time."""
        known = [track for track in windows.tracks if track.known == windows.time]
        if not known:
            return None
        windows = windows.select([name for track in known for name, _ in track.windows])
        tracks = self._tracks(windows, self.schema)
        return _AsTheyCame(InOrder(tracks), _Answers(windows, tracks.fields, folder, self.label))

    def _by_key(self, windows: Windows, rows: Rows, folder: Path) -> "_Answers":
        """The windows of one track, its questions and observations sorted by key and time."""
        reads = self.schema.select(dict.fromkeys((*windows.asked, *windows.observed)))
        tracks = self._tracks(windows, reads)
        held = self.engine.create(_COLUMNS)
        start = 0
        for chunk in rows.read([identifier(name) for name in reads.names]):
            narrow = _narrow(tracks, windows, self._batch(chunk, reads), start)
            self.engine.insert(held, f"SELECT * FROM {CHUNK}", narrow, self.label)
            start += len(chunk)
        answers = _Answers(windows, tracks.fields, folder, self.label)
        pieces = self.engine.sorted(held, _ORDER, PIECE, self.label)
        for asked, found in _walked(lambda: self._tracks(windows, reads), pieces):
            answers.put(asked, found)
        self.engine.drop(held)
        return answers

    def _tracks(self, windows: Windows, schema: Schema) -> Tracks:
        return Tracks(windows, schema, self.engine.threads)

    def _batch(self, chunk: pa.Table, schema: Schema) -> Batch:
        chunk = chunk.select([identifier(name) for name in schema.names])
        return Batch.from_arrow(chunk.rename_columns(list(schema.names)), schema)

    def _attach(self, chunk: pa.Table, found: dict[str, Array]) -> pa.Table:
        columns = {name: chunk[name] for name in (*self.keep, ROW)}
        for given in self.tracks.fields:
            columns[identifier(given.name)] = column_of(found[given.name], given)
        return pa.table(columns)


def column_of(values: Array, field: Field) -> Any:
    """An Arrow column of windows, those that are missing as nulls."""
    flat = values.reshape(-1)
    missing = np.isnan(flat) if flat.dtype.kind == "f" else flat == MISSING_INT
    column = pa.array(flat, mask=missing).cast(arrow_type(Field(field.name, field.dtype)))
    if field.shape:
        return pa.FixedSizeListArray.from_arrays(column, field.shape[0])
    return column


class _Answers:
    """The windows of all rows, put in any order and taken in that of the rows."""

    def __init__(self, windows: Windows, fields: Sequence[Field], folder: Path, label: str) -> None:
        self.windows = windows
        self.names = [field.name for field in fields]
        self._folder = Path(mkdtemp(dir=folder))
        forms = [(field.numpy, tuple(size or 0 for size in field.shape)) for field in fields]
        self._values = Values(self._folder, forms, label)

    def put(self, rows: Array, columns: Sequence[Array]) -> None:
        self._values.put(rows, columns)

    def drop(self) -> None:
        rmtree(self._folder)

    def take(self, start: int, stop: int) -> Iterable[tuple[str, Array]]:
        return zip(self.names, self._values.take(start, stop), strict=True)


class _AsTheyCame:
    """The windows of rows that were answered as they came, while no later row can change them."""

    def __init__(self, walk: InOrder, answers: _Answers) -> None:
        self.answers = answers
        self._walk: InOrder | None = walk
        self._rows = 0

    def add(self, batch: Batch) -> bool:
        """The next rows; False: they came too late, and all that was found is of no use."""
        assert self._walk is not None
        try:
            found = self._walk.answer(batch)
        except NotInOrderError:
            self._walk = None  # neither its memory nor its place on the disk is kept
            self.answers.drop()
            return False
        rows = np.arange(self._rows, self._rows + len(batch))
        self.answers.put(rows, [found[name] for name in self.answers.names])
        self._rows += len(batch)
        return True


# -- key by key ------------------------------------------------------------------------------------

_NAMES = ("high", "low", "moment", "value", "kind", "position")
_COLUMNS = "high UBIGINT, low UBIGINT, moment BIGINT, value BIGINT, kind UTINYINT, position BIGINT"
_ORDER = ("low", "moment")
"""Half of a hash keeps keys together; where two share it, each still has its own rows in order."""


def _narrow(tracks: Tracks, windows: Windows, batch: Batch, start: int) -> pa.Table:
    """The questions and the observations of rows for the only track there is."""
    (track,) = windows.tracks
    keys = tracks.hash(0, batch)
    times, known = batch[windows.time], batch[track.known]
    rows = np.arange(start, start + len(batch))
    values = tracks.values(0, batch)
    values = np.zeros(len(batch), np.int64) if values is None else values.view(np.int64)
    if track.known == windows.time:
        return _table(keys, times, values, ASK | TELL, rows)
    told = np.flatnonzero((known != MISSING_INT) & keys.any(axis=1))
    asks = _table(keys, times, values, ASK, rows)
    tells = _table(keys[told], known[told], values[told], TELL, rows[told])
    return pa.concat_tables([asks, tells])


def _table(keys: Array, at: Array, values: Array, kind: int, rows: Array) -> pa.Table:
    kinds = np.full(len(rows), kind, np.uint8)
    columns = (keys[:, 0], keys[:, 1], at, values, kinds, rows)
    return pa.table(dict(zip(_NAMES, map(np.ascontiguousarray, columns), strict=True)))


def _walked(
    make: Callable[[], Tracks], pieces: Iterable[pa.RecordBatch]
) -> Iterator[tuple[Array, list[Array]]]:
    """Rows and their windows, piece by piece; what a key made known is forgotten behind it."""
    tracks = make()
    for piece in pieces:
        high, low, moments, values, kinds, rows = (piece[name].to_numpy() for name in _NAMES)
        # Only the last key of a piece may go on in the next one.
        last = int(np.searchsorted(low, low[-1]))
        for begin, end in ((0, last), (last, len(low))):
            if begin == end:
                continue
            if begin:
                tracks = make()
            part = slice(begin, end)
            keys = np.stack((high[part], low[part]), axis=1)
            found = tracks.run(0, keys, moments[part], values[part], kinds[part])
            asks = np.flatnonzero(kinds[part] & ASK)
            yield rows[part][asks], [column[asks] for column in found]
