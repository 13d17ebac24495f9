"""Rows that wait for windows, in files: where they lie, what is told of them, and their order."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain.core.batch import Array, Batch
from drivetrain.core.tracks import ASK, TELL, Tracks
from drivetrain.events.spark.segments import Cut
from drivetrain.events.windowed.keyed import opened

PLACES = ("clock", "partition", "offset", "message")
"""Of each row: the latest time that the clock of its partition had said by then, where its message
was, and which of its home's messages that is."""


@dataclass(frozen=True)
class Home:
    """Where rows of one task lie.

    Attributes:
        rows: the file of the columns that the steps need.
        narrow: that of the narrow columns.
        order: that of each row's place in the order of all, and of what it does to each track.
        records: that of the messages, where a step behind windows may fail on one.
    """

    rows: str
    narrow: str
    records: str = ""
    order: str = ""


def lay(folder: Path, table: pa.Table) -> str:
    """Write a table to a new file of a folder; its path."""
    path = folder / f"{uuid.uuid4().hex}.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return str(path)


def narrow_of(cut: Cut, rows: pa.Table, places: Mapping[str, Array]) -> pa.Table:
    """The narrow columns of rows."""
    tracks = Tracks(cut.windows, cut.reads, 1)
    batch = Batch.from_arrow(rows.select(list(cut.reads.names)), cut.reads)
    columns: dict[str, Any] = {**places, "asked": batch[cut.windows.time]}
    for number in range(len(tracks.tracks)):
        keys, values = tracks.hash(number, batch), tracks.values(number, batch)
        columns[f"told {number}"] = tracks.told(number, batch, keys, values)
        columns[f"high {number}"], columns[f"low {number}"] = keys[:, 0], keys[:, 1]
        if values is not None:
            columns[f"value {number}"] = values.view(np.int64)
    return pa.table({name: pa.array(np.ascontiguousarray(c)) for name, c in columns.items()})


def ordered(
    folder: Path,
    cut: Cut,
    homes: Sequence[Home],
    watermarks: Sequence[int],
    refused: Sequence[Mapping[int, str]],
) -> tuple[list[Home], list[int]]:
    """Put the rows of all homes in one order, and say what each does to each track.

    It is the order of the messages' clocks, each partition's messages staying in their own.

    Args:
        folder: where it is written, a file for each home.
        cut: the windows.
        homes: where the rows lie.
        watermarks: of each track before the rows.
        refused: of each home the messages that are left out.

    Returns:
        The homes with the order, and the watermarks behind the rows.
    """
    tables = [opened(home.narrow) for home in homes]
    parts = zip(tables, refused, strict=True)
    out = [np.isin(table["message"].to_numpy(), list(some)) for table, some in parts]
    keys = [np.concatenate([t[name].to_numpy() for t in tables]) for name in PLACES[:3]]
    rows = np.lexsort(keys[::-1])
    rows = rows[~np.concatenate(out)[rows]]
    columns: dict[str, Array] = {"rank": np.full(len(keys[0]), -1, np.int64)}
    columns["rank"][rows] = np.arange(len(rows))
    behind: list[int] = []
    for track, watermark in enumerate(watermarks):
        times = np.concatenate([table[f"told {track}"].to_numpy() for table in tables])[rows]
        taken, watermark = in_time(times, watermark, cut.windows.lateness)
        kinds = np.zeros(len(keys[0]), np.uint8)
        kinds[rows] = np.where(taken, ASK | TELL, ASK)
        columns[f"kind {track}"] = kinds
        behind.append(watermark)
    bounds = np.cumsum([len(table) for table in tables])[:-1]
    pieces = {name: np.split(column, bounds) for name, column in columns.items()}
    found: list[Home] = []
    for number, home in enumerate(homes):
        order = pa.table({name: piece[number] for name, piece in pieces.items()})
        found.append(replace(home, order=lay(folder, order)))
    return found, behind


def in_time(times: Array, watermark: int, lateness: int) -> tuple[Array, int]:
    """Which of observations in their order are taken in, as the kernel has it; the new watermark.

    Args:
        times: int64 ``[n]``: when each became known; missing: it is none.
        watermark: before them.
        lateness: how much later than the latest one may come, in microseconds.
    """
    least = np.iinfo(np.int64).min
    seen = np.maximum.accumulate(np.append(np.int64(watermark), times))
    bound = np.maximum(seen[:-1], least + 1 + lateness) - lateness
    return (times != least) & (times >= bound), int(seen[-1])
