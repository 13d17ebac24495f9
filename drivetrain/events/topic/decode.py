"""Values of messages as Arrow rows, many at a time; what does not fit is named, one by one.

What becomes of a value never depends on its neighbours: many are read at once, and where that
fails, halves of them, down to the single ones that do not fit. So a batch that is read again with
other borders gives the same rows.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.json as pj

from drivetrain.core.batch import Array
from drivetrain.core.need import need
from drivetrain.core.schema import Schema
from drivetrain.events.reading.arrow import TYPES, arrow_schema, normalise, schema_of_arrow

pc = need("pyarrow.compute", "data")

BLOCK = 1 << 20
"""Bytes of JSON that one thread parses at a time."""

SHOWN = 60
"""Bytes of a value that a reason quotes."""


@dataclass(frozen=True)
class Decoded:
    """What values became.

    Attributes:
        rows: of the declared columns, in order.
        origin: int64 ``[rows]``: the value that each row came from.
        refused: of each value that did not fit, the reason.
    """

    rows: pa.Table
    origin: Array
    refused: Mapping[int, str] = field(default_factory=dict[int, str])


class Decode(Protocol):
    """Makes rows of values."""

    def __call__(self, values: Sequence[bytes]) -> Decoded: ...


Attempt = Callable[[Sequence[bytes]], "tuple[pa.Table, Array | None] | str"]
"""Rows of values and the value of each row (None: a row each, in order); or why there are none."""


def by_halves(values: Sequence[bytes], attempt: Attempt, schema: Schema) -> Decoded:
    """Rows of the values that fit; those that do not are found by halving."""
    parts, origins = [arrow_schema(schema).empty_table()], [np.empty(0, np.int64)]
    refused: dict[int, str] = {}
    pending = [(0, len(values))]
    while pending:
        start, stop = pending.pop()
        if start == stop:
            continue
        found = attempt(values[start:stop] if stop - start < len(values) else values)
        if not isinstance(found, str):
            rows, origin = found
            parts.append(rows)
            origins.append(start + (np.arange(len(rows)) if origin is None else origin))
        elif stop - start == 1:
            refused[start] = found
        else:
            middle = (start + stop) // 2
            pending += [(middle, stop), (start, middle)]
    return Decoded(pa.concat_tables(parts), np.concatenate(origins), refused)


# -- JSON ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Json:
    """Each value one JSON object; an absent key is a null, one that is not a column is passed over.

    Attributes:
        schema: the columns.
        where: the topic, for errors.
    """

    schema: Schema
    where: str

    def __call__(self, values: Sequence[bytes]) -> Decoded:
        return by_halves(values, self._rows, self.schema)

    def _rows(self, values: Sequence[bytes]) -> "tuple[pa.Table, None] | str":
        joined = _objects(values)
        if joined is None:
            return f"found {_short(values[0])}, allowed: one JSON object"
        due = pa.schema([(field.name, TYPES[field.dtype]) for field in self.schema])
        found = self._parsed(joined, len(values), due)
        if isinstance(found, str):
            # As true and false, or as times with a zone: what the text of the first one says.
            other = _as_written(values[0].strip(), due)
            if other is not None:
                again = self._parsed(joined, len(values), other)
                found = found if isinstance(again, str) else again
        return found if isinstance(found, str) else (found, None)

    def _parsed(self, joined: bytes, count: int, due: pa.Schema) -> pa.Table | str:
        # A block ends at the end of a line, which is that of a value where none has two.
        whole = count == 1 or len(joined) <= BLOCK or joined.count(b"\n") != count - 1
        parse = pj.ParseOptions(explicit_schema=due, unexpected_field_behavior="ignore")
        size = len(joined) + 1 if whole else BLOCK
        read = pj.ReadOptions(block_size=size, use_threads=not whole)
        try:
            table = pj.read_json(pa.BufferReader(joined), read, parse)
            if len(table) != count:
                return f"found {len(table)} objects in a value, allowed: one"
            table = normalise(_timed(table, self.schema), self.schema, self.where)
            table.validate(full=True)  # text that is not UTF-8
        except (pa.ArrowInvalid, ValueError) as error:
            return _reason(error)
        return table


def _objects(values: Sequence[bytes]) -> bytes | None:
    """Values one after another, if each begins with ``{`` and ends with ``}``; else None.

    Between ``}`` and ``{`` no object can go on. So where as many objects are found in all as there
    are values, each value is one object.
    """
    joined = b"\n".join(values)
    for trimmed in (False, True):
        if trimmed:
            values = [value.strip() for value in values]
            joined = b"\n".join(values)
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        if lengths.min() < 2:
            continue
        text = np.frombuffer(joined, np.uint8)
        ends = np.cumsum(lengths + 1) - 2
        if (text[ends] == ord("}")).all() and (text[ends - lengths + 1] == ord("{")).all():
            return joined
    return None


def _as_written(value: bytes, due: pa.Schema) -> pa.Schema | None:
    """The types that the text of a value asks for where they differ from those due; else None."""
    try:  # not by Arrow, whose stack overflows where it infers the type of a deep value
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    fields = []
    for item in due:
        if item.name in found and pa.types.is_timestamp(item.type):
            item = item.with_type(pa.string())
        elif isinstance(found.get(item.name), bool) and pa.types.is_int64(item.type):
            item = item.with_type(pa.bool_())
        fields.append(item)
    other = pa.schema(fields)
    return None if other.equals(due) else other


def _timed(table: pa.Table, schema: Schema) -> pa.Table:
    """Times that were read as text as times; with a zone they become UTC."""
    for due in schema:
        column = table.column(due.name)
        if due.dtype != "timestamp" or not pa.types.is_string(column.type):
            continue
        try:
            column = column.cast(pa.timestamp("us"))
        except pa.ArrowInvalid:
            column = column.cast(pa.timestamp("us", "UTC"))
        table = table.set_column(table.schema.get_field_index(due.name), due.name, column)
    return table


def told(values: Sequence[bytes], declared: Schema, where: str) -> Schema:
    """The columns that the first values of a topic show, those of ``declared`` as declared.

    Raises:
        ValueError: there is no value, or they show no columns.
    """
    joined = _objects(values) if values else None
    allowed = "JSON objects, each key of one type in all; declare types={…} for all columns"
    if joined is None:
        found = _short(values[0]) if values else "no message"
        raise ValueError(f"{where}: found {found}, allowed: {allowed}.")
    try:
        for value in values:  # what is too deep for this would overflow Arrow's stack
            json.loads(value)
        read = pj.ReadOptions(block_size=len(joined) + 1, use_threads=False)
        found = pj.read_json(pa.BufferReader(joined), read).schema
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: found {_reason(error)}, allowed: {allowed}.") from None
    kinds = {f.name: pa.string() if pa.types.is_time(f.type) else f.type for f in found}
    kinds |= {f.name: TYPES[f.dtype] for f in declared}
    return schema_of_arrow(pa.schema(list(kinds.items())))


# -- Arrow -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArrowStreams:
    """Each value an Arrow IPC stream of any number of rows.

    Attributes:
        schema: the columns.
        where: the topic, for errors.
    """

    schema: Schema
    where: str

    def __call__(self, values: Sequence[bytes]) -> Decoded:
        return by_halves(values, self._rows, self.schema)

    def _rows(self, values: Sequence[bytes]) -> "tuple[pa.Table, Array] | str":
        try:
            tables = [normalise(_stream(value), self.schema, self.where) for value in values]
            table = pa.concat_tables(tables)
            table.validate(full=True)
        except (pa.ArrowException, ValueError, OSError) as error:
            return _reason(error)
        return table, np.repeat(np.arange(len(values)), [len(each) for each in tables])


def _stream(value: bytes) -> pa.Table:
    """The rows of a stream, which hold what it claims: before that nothing may compute with them.

    Raises:
        OSError: it is torn.
        pa.ArrowException: it is none, or claims what it does not hold.
    """
    with pa.ipc.open_stream(pa.BufferReader(value)) as opened:
        table = opened.read_all()
    table.validate(full=True)
    return table


def told_by_stream(value: bytes) -> Schema:
    """The columns of an Arrow IPC stream.

    Raises:
        ValueError: it is none.
    """
    return schema_of_arrow(_stream(value).schema)


def _short(value: bytes) -> str:
    text = repr(value[:SHOWN])[1:]
    return f"{text}… ({len(value)} bytes)" if len(value) > SHOWN else text


def _reason(error: Exception) -> str:
    """One line of an error, without the row that only a batch has."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.rpartition(" in row ")[0] or text


def one_line(error: Any) -> str:
    """An error's first line, as a reason."""
    return _reason(error)
