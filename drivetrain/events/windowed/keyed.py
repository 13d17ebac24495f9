"""The states of keys in files: what was written later counts, and files that grow are merged.

A file is sorted by track and key and never changed. Who needs some keys looks them up in it, mapped
into memory, the newest file first; so it takes memory for these keys alone, however many there are.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain.core import durable
from drivetrain.core.batch import Array
from drivetrain.core.key_states import KeyStates

SCHEMA = pa.schema(
    [
        ("track", pa.int32()),
        ("high", pa.uint64()),
        ("low", pa.uint64()),
        ("state", pa.large_binary()),
    ]
)

GROWTH = 2
"""An older file is merged with what is written unless it is larger than so many times that."""

ENDING = ".keys"


def opened(path: str | Path) -> pa.Table:
    """What a file holds, mapped into memory."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


@dataclass(frozen=True)
class Keyed:
    """The states of some keys of the tracks of one declaration.

    Attributes:
        folder: where the files lie.
        files: their names, the older ones first.
    """

    folder: Path
    files: tuple[str, ...] = ()

    def find(self, track: int, hashes: Array) -> list[bytes]:
        """The state of each key; b"" of one that is not there.

        Args:
            track: its position.
            hashes: uint64 ``[keys, 2]``.

        Raises:
            OSError: a file is gone.
        """
        found = [b""] * len(hashes)
        missing = np.arange(len(hashes))
        for name in reversed(self.files):
            if not len(missing):
                break
            table = opened(self.folder / name)
            rows = _rows(table, track, hashes[missing])
            there = np.flatnonzero(rows >= 0)
            states = table["state"].take(pa.array(rows[there])).to_pylist()
            for place, state in zip(missing[there].tolist(), states, strict=True):
                found[place] = state
            missing = np.delete(missing, there)
        return found

    def add(self, tracks: Sequence[tuple[Array, Sequence[bytes]]]) -> "Keyed":
        """With newer states of some keys of each track, in a file of its own.

        Raises:
            OSError: the disk is full.
        """
        new = _table(tracks)
        if not len(new):
            return self
        kept = list(self.files)
        parts = [new]
        size = new.nbytes
        while kept:
            table = opened(self.folder / kept[-1])
            if table.nbytes > GROWTH * size:
                break
            size += table.nbytes
            parts.insert(0, table)
            kept.pop()
        name = f"{uuid.uuid4().hex}{ENDING}"
        with durable.file(self.folder / name) as file, pa.ipc.new_file(file, SCHEMA) as writer:
            writer.write_table(_latest(parts))
        return Keyed(self.folder, (*kept, name))

    def states(self, tracks: int) -> list[tuple[Array, Sequence[bytes]]]:
        """All keys of each track, and their states."""
        if not self.files:
            return [(np.empty((0, 2), np.uint64), ())] * tracks
        table = _latest([opened(self.folder / name) for name in self.files])
        number, hashes = table["track"].to_numpy(), _hashes(table)
        found: list[tuple[Array, Sequence[bytes]]] = []
        for track in range(tracks):
            low, high = np.searchsorted(number, (track, track + 1)).tolist()
            found.append((hashes[low:high], table["state"].slice(low, high - low).to_pylist()))
        return found


def _table(tracks: Sequence[tuple[Array, Sequence[bytes]]]) -> pa.Table:
    numbers = [np.full(len(blobs), track, np.int32) for track, (_, blobs) in enumerate(tracks)]
    hashes = np.concatenate([hashes for hashes, _ in tracks])
    states: Iterable[bytes] = (blob for _, blobs in tracks for blob in blobs)
    columns: list[Any] = [np.concatenate(numbers), hashes[:, 0], hashes[:, 1]]
    columns = [pa.array(np.ascontiguousarray(column)) for column in columns]
    return pa.table([*columns, pa.array(states, pa.large_binary())], schema=SCHEMA)


def _hashes(table: pa.Table) -> Array:
    return np.stack((table["high"].to_numpy(), table["low"].to_numpy()), axis=1)


def _latest(parts: Sequence[pa.Table]) -> pa.Table:
    """The rows of tables sorted by key, of each key that of the last table which has it."""
    whole = pa.concat_tables(parts).combine_chunks()
    columns = [whole[name].to_numpy() for name in ("track", "high", "low")]
    order = np.lexsort((np.arange(len(whole)), *reversed(columns)))
    last = np.zeros(max(len(order) - 1, 0), bool)
    for column in columns:
        ordered = column[order]
        last |= ordered[1:] != ordered[:-1]
    return whole.take(pa.array(order[np.append(last, [True] * bool(len(order)))]))


def _rows(table: pa.Table, track: int, hashes: Array) -> Array:
    """Where each key of a track lies in a file; -1: nowhere."""
    low, high = np.searchsorted(table["track"].to_numpy(), (track, track + 1)).tolist()
    firsts, seconds = (table[name].to_numpy()[low:high] for name in ("high", "low"))
    at = np.searchsorted(firsts, hashes[:, 0])
    count = high - low
    if not count:
        return np.full(len(hashes), -1)
    while True:  # halves of hashes are hardly ever equal where the others are not
        here = np.minimum(at, count - 1)
        same = (at < count) & (firsts[here] == hashes[:, 0])
        further = same & (seconds[here] < hashes[:, 1])
        if not further.any():
            break
        at = at + further
    return np.where(same & (seconds[here] == hashes[:, 1]), low + here, -1)


def divided(states: KeyStates, parts: int) -> list[tuple[Array, list[bytes]]]:
    """The keys of a track by the part that they belong to."""
    part = part_of(states.hashes[:, 1], parts)
    found: list[tuple[Array, list[bytes]]] = []
    for number in range(parts):
        mine = np.flatnonzero(part == number)
        found.append((states.hashes[mine], [states.blobs[at] for at in mine.tolist()]))
    return found


def part_of(low: Array, parts: int) -> Array:
    """Which part a key belongs to, by the second half of its hash."""
    return low % np.uint64(parts)
