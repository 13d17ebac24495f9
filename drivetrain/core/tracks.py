"""The state of windows, what is read off it and what it observes: a binding of the kernel."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np

from drivetrain.core.batch import Array, Batch
from drivetrain.core.cores import cores
from drivetrain.core.errors import wrong
from drivetrain.core.key_hash import Hashes, hashes_of
from drivetrain.core.native import kernel
from drivetrain.core.schema import MISSING_INT, Dtype, Field, Schema
from drivetrain.core.window import FORGOTTEN, STATS, Track, Window, Windows, microseconds_of

ASK, TELL, BOTH = 1, 2, 3
"""What a row of :meth:`Tracks.run` does."""

_KINDS: Mapping[Dtype, int] = {
    "float32": 1,
    "float64": 1,
    "int64": 2,
    "timestamp": 2,
    "string": 3,
    "bytes": 3,
}
FORMAT = b"drivetrain windows 1\n"
"""What the state of windows begins with."""

Bytes: TypeAlias = bytes
"""``Tracks.bytes`` is how many there are."""


@dataclass(frozen=True)
class Observed:
    """What became of observations, counted over all tracks that were fed.

    Attributes:
        kept: taken in.
        late: left out, for they were later than ``lateness`` allows.
        missing: none at all: the value, the key or the time at which it was known is missing.
    """

    kept: int = 0
    late: int = 0
    missing: int = 0

    def __add__(self, other: "Observed") -> "Observed":
        return Observed(
            self.kept + other.kept, self.late + other.late, self.missing + other.missing
        )


class Tracks:
    """All that is kept of what rows observed, and the windows that rows are given of it.

    What a row is given depends on nothing but its time and what was observed: reads, the order in
    which observations come (within ``lateness``), the number of threads and the cutting of rows
    into batches change no bit of it. A row may be asked at any time from ``watermark - lateness``
    on; of what lies behind by more a window gives what is still kept. Of observations that became
    known at one moment the one with the greater value counts as the later one.

    Attributes:
        windows: what is declared.
        fields: the columns that it gives, in the order of ``windows.columns``.
        tracks: what is kept, each once.
        threads: how many work on large batches.

    Args:
        windows: the declaration.
        schema: of the columns at the step; it has those of ``windows.asked`` and ``.observed``.
        threads: how many may work on large batches; None: one for each core.

    Raises:
        ValueError: the schema lacks a column, or has it with another type.
        ImportError: the kernel was not built where this was installed.
    """

    def __init__(self, windows: Windows, schema: Schema, threads: int | None = None) -> None:
        self.windows = windows
        self.fields = windows.fields(schema)
        self.tracks = windows.tracks
        self.threads = threads or cores()
        self._types: Mapping[str, Dtype] = {field.name: field.dtype for field in schema}
        self._native = [self._make(track) for track in self.tracks]
        self._row = self._make_row()
        self._fields = {field.name: field for field in self.fields}

    # -- rows ----------------------------------------------------------------------------------

    def read(self, batch: Batch) -> dict[str, Array]:
        """What each row is given at its time; changes nothing that later reads give.

        Args:
            batch: has the columns ``windows.asked``.
        """
        hashes = Hashes(self._types, batch)
        times = _times(batch, self.windows.time)
        found: dict[str, Array] = {}
        for number, track in enumerate(self.tracks):
            outs = self._outs(track, len(batch))
            keys = hashes.of(track.keys)
            self._native[number].run(keys, times, None, None, None, outs, self.threads)
            found |= self._named(track, outs)
        return {name: found[name] for name in self.windows.names}

    def observe(self, batch: Batch) -> Observed:
        """Take in what rows observe. A track whose columns are not all there is left as it is.

        Raises:
            MemoryError: part of the rows may have been taken in.
        """
        hashes = Hashes(self._types, batch)
        kinds = np.full(len(batch), TELL, np.uint8)
        found = Observed()
        for number, track in enumerate(self.tracks):
            if any(name not in batch for name in _columns(track)):
                continue
            late, missing = self._native[number].run(
                hashes.of(track.keys),
                None,
                _times(batch, track.known),
                self._values(track, batch),
                kinds,
                None,
                self.threads,
            )
            found += Observed(len(batch) - late - missing, late, missing)
        return found

    def replay(
        self, batch: Batch, asks: Array | None = None, tells: Array | None = None
    ) -> dict[str, Array]:
        """In the order of the rows: each asks at its time, and then tells what it observes.

        Args:
            batch: rows in the order in which things happened, with all columns.
            asks: bool ``[rows]``: which rows ask; the others are given empty windows.
            tells: bool ``[rows]``: which rows tell.
        """
        hashes = Hashes(self._types, batch)
        kinds = np.zeros(len(batch), np.uint8)
        kinds |= np.uint8(ASK) if asks is None else asks.astype(np.uint8) * np.uint8(ASK)
        kinds |= np.uint8(TELL) if tells is None else tells.astype(np.uint8) * np.uint8(TELL)
        times = _times(batch, self.windows.time)
        found: dict[str, Array] = {}
        for number, track in enumerate(self.tracks):
            outs = self._outs(track, len(batch))
            self._native[number].run(
                hashes.of(track.keys),
                times,
                _times(batch, track.known),
                self._values(track, batch),
                kinds,
                outs,
                self.threads,
            )
            found |= self._named(track, outs)
        return {name: found[name] for name in self.windows.names}

    def run(
        self,
        track: int,
        keys: Array,
        times: Array,
        values: Array | None,
        kinds: Array,
        told: Array | None = None,
    ) -> list[Array]:
        """The raw form, for one track: rows ask, tell, or ask and then tell, in order.

        Keys may come one after another, each with its own rows in order of time: what is late is
        told by the latest time of the key alone, and the watermark stays where it is.

        Args:
            track: its position in ``tracks``.
            keys: uint64 ``[rows, 2]``, see :meth:`hash`.
            times: int64 ``[rows]``: of the question or of the knowledge, in microseconds.
            values: what is told: float64, int64, or uint64 hashes ``[rows]``, see
                :meth:`values`; None for a track of rows themselves.
            kinds: uint8 ``[rows]``: ``ASK``, ``TELL`` or ``BOTH``.
            told: int64 ``[rows]``: of the knowledge, where ``times`` are of the question alone.

        Returns:
            The track's windows in their order, an array of ``[rows]`` (``recent``: ``[rows, n]``)
            each. Rows that only tell have empty windows there.
        """
        declared = self.tracks[track]
        outs = self._outs(declared, len(times))
        times = np.ascontiguousarray(times, np.int64)
        held = None if values is None else np.ascontiguousarray(values)
        self._native[track].run(
            np.ascontiguousarray(keys, np.uint64),
            times,
            times if told is None else np.ascontiguousarray(told, np.int64),
            held,
            np.ascontiguousarray(kinds, np.uint8),
            outs,
            self.threads,
            1,
        )
        return list(self._named(declared, outs).values())

    def hash(self, track: int, batch: Batch) -> Array:
        """The 128-bit hash of each row's key: uint64 ``[rows, 2]``; (0, 0): a column is missing."""
        return Hashes(self._types, batch).of(self.tracks[track].keys)

    def values(self, track: int, batch: Batch) -> Array | None:
        """What rows tell a track, as :meth:`run` takes it; None for a track of rows themselves."""
        return self._values(self.tracks[track], batch)

    def told(self, track: int, batch: Batch, keys: Array, values: Array | None) -> Array:
        """When what rows tell a track became known: int64 ``[rows]``; missing: they tell nothing.

        Args:
            track: its position in ``tracks``.
            batch: has the track's columns.
            keys: what :meth:`hash` gave of it.
            values: what :meth:`values` gave of it.
        """
        declared = self.tracks[track]
        known = _times(batch, declared.known).copy()
        nothing = ~keys.any(axis=1)
        if values is not None and values.dtype.kind == "f":
            nothing |= ~(np.abs(values) <= 2.0**62)
        elif values is not None:
            nothing |= values == (0 if values.dtype.kind == "u" else MISSING_INT)
        known[nothing] = MISSING_INT
        return known

    # -- one row, in plain values --------------------------------------------------------------

    def ask(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """What one row is given, as :meth:`read` has it, in the order of ``fields``.

        Args:
            values: of the columns ``windows.asked``, in their order: text, bytes, integers
                (times: microseconds), floats, and None for what is missing.

        Raises:
            TypeError: a value is of another type.
            ValueError: there are more or fewer than columns.
        """
        return self._row.ask(values)

    def tell(self, values: tuple[Any, ...]) -> tuple[int, int, int]:
        """Take in what one row observes; how often it was kept, late and missing.

        Args:
            values: of the columns ``windows.observed``, in their order, as :meth:`ask` has them.

        Raises:
            TypeError: a value is of another type; nothing is taken in then.
            ValueError: there are more or fewer than columns.
        """
        return self._row.tell(values)

    # -- what is kept --------------------------------------------------------------------------

    def expire(self, now: int) -> int:
        """Forget the keys whose every window is empty from ``now`` on; gives how many.

        It changes nothing that is asked at ``now`` or later, as long as nothing that became known
        more than a window's length before ``now`` is still to come: so ``now`` is at most
        ``watermark - lateness`` where that has to hold. A window that looks back without end never
        becomes empty, so that its keys stay.
        """
        return sum(native.expire(now) for native in self._native)

    @property
    def keys(self) -> int:
        """How many keys are kept, over all tracks."""
        return sum(native.keys for native in self._native)

    @property
    def bytes(self) -> int:
        """The memory that all keys take."""
        return sum(native.bytes for native in self._native)

    @property
    def watermark(self) -> int | None:
        """The latest time at which something became known, in microseconds; None: nothing did."""
        found = [native.watermark for native in self._native if native.watermark is not None]
        return max(found, default=None)

    def dump(self) -> Bytes:
        """All state. Equal states give equal bytes."""
        parts = [native.dump() for native in self._native]
        body = b"".join((len(part).to_bytes(8, "little") + part) for part in parts)
        return FORMAT + self._digest(self.tracks) + kernel().siphash(body) + body

    @classmethod
    def load(
        cls, data: Bytes, windows: Windows, schema: Schema, threads: int | None = None
    ) -> "Tracks":
        """What :meth:`dump` gave, of the same declaration.

        Raises:
            ValueError: it is the state of other windows, or no such bytes.
        """
        made = cls(windows, schema, threads)
        start = len(FORMAT)
        if data[:start] != FORMAT or len(data) < start + 32:
            raise wrong("the state of windows", data[:start], "what dump() gave")
        if data[start : start + 16] != made._digest(made.tracks):
            raise ValueError(
                "the state of windows: found that of another declaration (other windows, keys, "
                "types or lateness), allowed: that of the same one. Fill it in anew."
            )
        body = memoryview(data)[start + 32 :]
        if kernel().siphash(body) != data[start + 16 : start + 32]:
            raise wrong("the state of windows", "damaged or cut bytes", "all that dump() gave")
        for native in made._native:
            size = int.from_bytes(body[:8], "little")
            native.load(body[8 : 8 + size])
            body = body[8 + size :]
        return made

    def dump_keys(self, track: int, hashes: Array) -> list[Bytes]:
        """The state of single keys of one track, b"" for one that is not there.

        Args:
            track: its position in ``tracks``.
            hashes: uint64 ``[n, 2]``.
        """
        dump_key = self._native[track].dump_key
        return [dump_key(*pair) for pair in hashes.tolist()]

    def load_keys(self, track: int, hashes: Array, blobs: Sequence[Bytes]) -> None:
        """Put in single keys, each in place of what is there of it.

        Raises:
            ValueError: a blob is not what :meth:`dump_keys` gave for the same declaration.
        """
        load_key = self._native[track].load_key
        for pair, blob in zip(hashes.tolist(), blobs, strict=True):
            load_key(*pair, blob)

    def drop_keys(self, track: int, hashes: Array) -> int:
        """Forget single keys; gives how many were there."""
        drop_key = self._native[track].drop_key
        return sum(drop_key(*pair) for pair in hashes.tolist())

    # -- to and from the kernel ----------------------------------------------------------------

    def _make(self, track: Track) -> Any:
        windows = [_numbers(name, window) for name, window in track.windows]
        digest = self._digest((track,))
        late = self.windows.lateness
        return kernel().Track(self._kind(track), track.resolution, late, FORGOTTEN, digest, windows)

    def _make_row(self) -> Any:
        asked, observed = self.windows.asked, self.windows.observed
        parts: list[tuple[Any, ...]] = []
        places: dict[str, tuple[int, int]] = {}
        for number, track in enumerate(self.tracks):
            asked_key = tuple(map(asked.index, track.keys))
            told_key = tuple(map(observed.index, track.keys))
            value = -1 if track.value is None else observed.index(track.value)
            known = observed.index(track.known)
            parts.append((self._native[number], asked_key, told_key, known, value))
            places |= {name: (number, at) for at, (name, _) in enumerate(track.windows)}
        order = [places[name] for name in self.windows.names]
        time = asked.index(self.windows.time)
        made = kernel()
        return made.Row(made.Track, len(asked), len(observed), time, parts, order)

    def _kind(self, track: Track) -> int:
        return 0 if track.value is None else _KINDS[self._types[track.value]]

    def _digest(self, tracks: Sequence[Track]) -> Bytes:
        """What tells the state of tracks from that of others."""
        told: list[Any] = [self.windows.lateness]
        for track in tracks:
            types = [self._types[name] for name in track.keys]
            windows = [_numbers(name, window) for name, window in track.windows]
            told += [track.keys, types, track.value, self._kind(track), track.known]
            told += [track.resolution, windows]
        return kernel().siphash(json.dumps(told).encode())

    def _outs(self, track: Track, rows: int) -> list[Array]:
        fields = [self._fields[name] for name, _ in track.windows]
        return [np.empty((rows, *_widths(field)), field.numpy) for field in fields]

    def _named(self, track: Track, outs: Sequence[Array]) -> dict[str, Array]:
        return dict(zip((name for name, _ in track.windows), outs, strict=True))

    def _values(self, track: Track, batch: Batch) -> Array | None:
        if track.value is None:
            return None
        dtype = self._types[track.value]
        column = batch.column(track.value)
        if dtype in ("string", "bytes"):
            return np.ascontiguousarray(hashes_of(column, dtype)[:, 0])
        kind = np.float64 if dtype in ("float32", "float64") else np.int64
        return np.ascontiguousarray(cast("Array", column), kind)


def _times(batch: Batch, name: str) -> Array:
    return np.ascontiguousarray(batch[name], np.int64)


def _columns(track: Track) -> tuple[str, ...]:
    value = () if track.value is None else (track.value,)
    return (*track.keys, track.known, *value)


def _widths(field: Field) -> tuple[int, ...]:
    return tuple(width or 0 for width in field.shape)


def _numbers(name: str, window: Window) -> tuple[int, int, int, int]:
    over = 0 if window.over is None else microseconds_of(window.over, name)
    half_life = 0 if window.half_life is None else microseconds_of(window.half_life, name)
    return STATS.index(window.stat), over, window.rows or 0, half_life
