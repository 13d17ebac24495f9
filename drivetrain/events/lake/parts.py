"""What the files of a table are kept apart by: columns, or the days and hours of a time."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.need import need

pc = need("pyarrow.compute", "data")

PART = b"drivetrain.partition"
"""Metadata of a column that is made of another one when rows are appended: of which, and how."""

UNITS = {"day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H"}
"""How the start of each is written: as ISO 8601, so that text sorts as time does."""

YEARS = (-62_135_596_800_000_000, 253_402_300_800_000_000)
"""Microseconds from 1970 to the years 1 and 10000, between which years have four digits."""

_MADE = re.compile(r"(\w+)\((.+)\)")


@dataclass(frozen=True)
class Part:
    """One column that a table is partitioned by.

    Attributes:
        name: the column.
        unit: of the time that it is made of; empty where it is a column of the rows.
        time: the column of that time.
    """

    name: str
    unit: str = ""
    time: str = ""

    @property
    def written(self) -> str:
        """As it was declared."""
        return f"{self.unit}({self.time})" if self.unit else self.name


def parts_of(declared: Sequence[str]) -> tuple[Part, ...]:
    """The columns that ``partition_by`` declares.

    Raises:
        ValueError: a unit that is none.
    """
    return tuple(map(_part, declared))


def _part(declared: str) -> Part:
    made = _MADE.fullmatch(declared)
    if made is None:
        return Part(declared)
    unit, time = made.groups()
    if unit not in UNITS:
        raise unknown("unit", unit, UNITS, f"partition_by {declared!r}")
    return Part(f"{time}_{unit}", unit, time)


def made_of(part: Part, columns: pa.Schema, where: str) -> pa.Schema:
    """The columns of a new table with the one that a part needs.

    Raises:
        ValueError: the column is not there, is no time, or is in the way.
    """
    source = part.time or part.name
    if source not in columns.names:
        raise unknown("column", source, columns.names, f"{where}, partition_by")
    if not part.unit:
        return columns
    if not pa.types.is_timestamp(columns.field(source).type):
        raise wrong(f"{where}, partition_by {part.written!r}", source, "a column of timestamps")
    if part.name in columns.names:
        raise wrong(f"{where}, partition_by {part.written!r}", part.name, "a name not yet taken")
    column = pa.field(part.name, pa.string(), metadata={PART: part.written.encode()})
    return columns.append(column)


def with_parts(rows: pa.Table, due: pa.Schema) -> pa.Table:
    """Rows with the columns of a table that are made of a time, where they do not bring them."""
    for item in due:
        made = (item.metadata or {}).get(PART)
        if made is None or item.name in rows.column_names:
            continue
        part = _part(made.decode())
        if part.time in rows.column_names:
            rows = rows.append_column(item.name, _starts(rows[part.time], part.unit))
    return rows


def _starts(times: pa.ChunkedArray, unit: str) -> pa.ChunkedArray:
    """The starts of the units that times lie in, as text; null where ISO 8601 has no word."""
    naive = times.cast(pa.timestamp("us", times.type.tz), safe=False).cast(pa.int64())
    written = pc.and_(pc.greater_equal(naive, YEARS[0]), pc.less(naive, YEARS[1]))
    naive = pc.if_else(written, naive, pa.scalar(None, pa.int64()))
    floors = pc.floor_temporal(naive.cast(pa.timestamp("us")), unit=unit)
    codes = floors.dictionary_encode().combine_chunks()
    if isinstance(codes, pa.ChunkedArray):
        codes = codes.chunk(0)
    texts = pc.strftime(codes.dictionary, UNITS[unit])  # each is written once
    return pa.chunked_array([texts.take(codes.indices)])
