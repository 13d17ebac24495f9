"""Values of messages as Arrow rows, many at a time; what does not fit is named, one by one.

What becomes of a value never depends on its neighbours: many are read at once, and where that
fails, those of one form, and then halves of these, down to the single ones that do not fit. So a
batch that is read again with other borders gives the same rows.
"""

import json
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
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

_TOGETHER = 512
"""Values of which one that does not fit costs the others a second look."""

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


def by_forms(
    values: Sequence[bytes], attempt: Attempt, schema: Schema, form: Callable[[bytes], Hashable]
) -> Decoded:
    """The same as :func:`by_halves`, in much less time where many do not fit.

    Args:
        values: what is read.
        attempt: reads some of them.
        schema: of the rows.
        form: what is odd about a value, the same of those that are likely to be read together, and
            nothing where nothing is; asked only of some that were not.
    """
    if len(values) <= _TOGETHER or isinstance(found := attempt(values), str):
        blocks = range(0, len(values), _TOGETHER)
        parts = [
            (start + np.array(places), part)
            for start in blocks
            for places, part in _apart(values[start : start + _TOGETHER], attempt, schema, form)
        ]
        return _in_order(parts) if parts else by_halves(values, attempt, schema)
    return Decoded(found[0], np.arange(len(values)) if found[1] is None else found[1])


def _apart(
    values: Sequence[bytes], attempt: Attempt, schema: Schema, form: Callable[[bytes], Hashable]
) -> Iterator[tuple[Sequence[int], Decoded]]:
    """What values became, with their places: all together if they can be read so, else by form."""
    found = attempt(values)
    if not isinstance(found, str):
        rows, origin = found
        yield range(len(values)), Decoded(rows, np.arange(len(rows)) if origin is None else origin)
        return
    alike: dict[Hashable, list[int]] = {}
    for place, value in enumerate(values):
        alike.setdefault(form(value), []).append(place)
    for odd, places in alike.items():
        group = [values[at] for at in places]
        if odd and isinstance(attempt(group), str):  # then none of them is likely to fit
            for at in places:
                yield [at], by_halves([values[at]], attempt, schema)
        else:
            yield places, by_halves(group, attempt, schema)


def _in_order(parts: Sequence[tuple[Array, Decoded]]) -> Decoded:
    """The rows of values that were read apart, in the order of the values."""
    origin = np.concatenate([places[part.origin] for places, part in parts])
    rows = pa.concat_tables([part.rows for _, part in parts])
    refused = {int(places[at]): why for places, part in parts for at, why in part.refused.items()}
    if (np.diff(origin) < 0).any():
        order = np.argsort(origin, kind="stable")
        rows, origin = rows.take(order), origin[order]
    return Decoded(rows, origin, dict(sorted(refused.items())))


# -- JSON ------------------------------------------------------------------------------------------

_USUAL: Mapping[str, tuple[type, ...]] = {
    "int64": (int,),
    "float32": (int, float),
    "float64": (int, float),
    "string": (str,),
    "bytes": (str,),
    "timestamp": (str,),
}
"""The types of JSON values that a column takes as they are."""
_ZONE = re.compile(r"(Z|[+-]\d\d(:?\d\d)?)$")


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
        return by_forms(values, self._rows, self.schema, self._form)

    def _form(self, value: bytes) -> Hashable:
        """The columns that a value has in another type than the usual one, or with a zone."""
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return "no JSON"
        if not isinstance(found, dict):
            return "no object"
        odd: list[tuple[str, str]] = []
        for column in self.schema:
            item = found.get(column.name)
            if item is None:
                continue
            if type(item) not in _USUAL[column.dtype]:
                odd.append((column.name, type(item).__name__))
            elif column.dtype == "timestamp" and _ZONE.search(item):
                odd.append((column.name, "zone"))
        return tuple(odd)

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
