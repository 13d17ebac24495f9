"""Observations as they are posted: rows of whatever columns each has, and where they come from."""

import base64
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import msgspec
import numpy as np

from drivetrain.core.batch import Array, Batch
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import Schema
from drivetrain.core.values import microseconds
from drivetrain.serve.execution.columns import JSON_TYPE, to_array
from drivetrain.serve.execution.filling import Fed

_MANY = re.compile(rb'"rows"\s*:\s*\[')
_KEYS = ("rows", "source", "offset")
_LONGEST_SOURCE = 256


@dataclass(frozen=True)
class Post:
    """Rows that were observed.

    Attributes:
        pieces: rows one after the other, those of one piece with the same columns.
        rows: how many in all.
        size: the bytes that they came in.
        source: where they were read; None where nobody said.
        offset: the position in it behind the last of them.
    """

    pieces: tuple[Batch, ...]
    rows: int
    size: int
    source: str | None = None
    offset: int = 0

    def packed(self) -> list[Any]:
        """Plain data, for MessagePack."""
        pieces = [[[name, _packed(piece[name])] for name in piece.columns] for piece in self.pieces]
        return [self.source, self.offset, self.rows, self.size, pieces]

    @classmethod
    def unpacked(cls, data: Sequence[Any]) -> "Post":
        """What :meth:`packed` gave."""
        source, offset, rows, size, pieces = data
        found = [Batch({name: _unpacked(*values) for name, values in piece}) for piece in pieces]
        return cls(tuple(found), rows, size, source, offset)


def _packed(array: Array) -> tuple[str, Any]:
    if array.dtype == object:
        return "O", array.tolist()
    return array.dtype.newbyteorder("<").str, array.astype(array.dtype.newbyteorder("<")).tobytes()


def _unpacked(kind: str, data: Any) -> Array:
    if kind != "O":
        return np.frombuffer(data, kind).astype(np.dtype(kind).newbyteorder("="))
    array = np.empty(len(data), np.object_)
    array[:] = data
    return array


@dataclass(frozen=True)
class Limits:
    """What a post may hold.

    Attributes:
        rows: at most.
        ahead: seconds that what is known may lie ahead of this machine's clock; 0 is no bound.
            One row from a clock that is far ahead would make all that comes after it late.
    """

    rows: int
    ahead: int = 86_400


class Reader:
    """Reads the body of a post.

    Args:
        schema: the columns that are observed.
        fed: what they are observed for: each row must have all columns of one of these.
        limits: what a post may hold.
    """

    def __init__(self, schema: Schema, fed: Sequence[Fed], limits: Limits) -> None:
        self.schema = schema
        self._limits = limits
        self._known = tuple(dict.fromkeys(each.known for each in fed if each.known is not None))
        self._needs = [frozenset(each.columns) for each in fed]
        self._fed: dict[tuple[int, ...], bool] = {}
        self._arrays = [to_array(field) for field in schema]
        self._moments = [n for n, field in enumerate(schema) if field.dtype == "timestamp"]
        self._blobs = [field.name for field in schema if field.dtype == "bytes"]
        names = [f"c{number}" for number in range(len(schema))]
        types = [JSON_TYPE[field.dtype] | msgspec.UnsetType for field in schema]
        row = msgspec.defstruct(
            "Observation",
            [(name, kind, msgspec.UNSET) for name, kind in zip(names, types, strict=True)],
            rename=dict(zip(names, schema.names, strict=True)),
            forbid_unknown_fields=True,
            gc=False,
        )
        many: Any = msgspec.defstruct(
            "Observations",
            [("rows", list[row]), ("source", str | None, None), ("offset", int | None, None)],
            forbid_unknown_fields=True,
        )
        self._one = msgspec.json.Decoder(row).decode
        self._many = msgspec.json.Decoder(many).decode

    def read(self, body: bytes | bytearray) -> Post:
        """The post that a body holds.

        Raises:
            ValueError: it holds none; names row and column, what was found and what is allowed.
        """
        source: str | None = None
        offset: int | None = None
        try:
            if _MANY.search(body):
                found = self._many(body)
                rows, source, offset = found.rows, found.source, found.offset
            else:
                rows = [self._one(body)]
            self._check_rows(len(rows))
            values = [msgspec.structs.astuple(row) for row in rows]
            pieces = tuple(self._pieces(values))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pieces, source, offset = self._carefully(body)
        return Post(pieces, sum(map(len, pieces)), len(body), *_origin(source, offset))

    def _pieces(self, rows: list[tuple[Any, ...]]) -> Iterator[Batch]:
        """Rows with the same columns as one batch, in their order."""
        columns = list(zip(*rows, strict=True))
        unset = [n for n, column in enumerate(columns) if msgspec.UNSET in column]
        if all(column.count(msgspec.UNSET) == len(rows) for column in (columns[n] for n in unset)):
            yield self._piece(columns, unset, 0)
            return
        start = 0
        for lacking, group in groupby(
            rows, key=lambda row: tuple(n for n in unset if row[n] is msgspec.UNSET)
        ):
            part = list(group)
            yield self._piece(list(zip(*part, strict=True)), lacking, start)
            start += len(part)

    def _piece(self, columns: Sequence[tuple[Any, ...]], unset: Sequence[int], start: int) -> Batch:
        self._check_fed(tuple(unset), start)
        found: dict[str, Array] = {}
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and infinite is missing
            for number, field in enumerate(self.schema):
                if number in unset:
                    continue
                values = list(columns[number])
                if number in self._moments:
                    values = [None if v is None else microseconds(v) for v in values]
                found[field.name] = self._arrays[number](values)
        return self._timely(Batch(found), start)

    def _timely(self, piece: Batch, start: int) -> Batch:
        """A piece of which nothing is known only in the future.

        Raises:
            ValueError: something is.
        """
        if not self._limits.ahead:
            return piece
        latest = time.time_ns() // 1000 + self._limits.ahead * 1_000_000
        for name in self._known:
            if name in piece and (beyond := np.flatnonzero(piece[name] > latest)).size:
                row = int(beyond[0])
                raise wrong(
                    f"row {start + row}, column {name!r}",
                    f"{piece[name][row]} us",
                    f"at most {self._limits.ahead} s ahead of this server's clock",
                )
        return piece

    def _check_fed(self, unset: tuple[int, ...], row: int) -> None:
        """See that rows which lack some columns have all of one track or learner.

        Raises:
            ValueError: they have not.
        """
        fed = self._fed.get(unset)
        names = self.schema.names
        if fed is None:
            has = frozenset(names) - {names[n] for n in unset}
            fed = any(needs <= has for needs in self._needs)
            if len(self._fed) < 1024:
                self._fed[unset] = fed
        if not fed:
            found = ", ".join(n for at, n in enumerate(names) if at not in unset) or "none"
            allowed = " or of ".join(sorted(", ".join(sorted(n)) for n in self._needs))
            raise ValueError(f"row {row}: found columns {found}; allowed: all of {allowed}.")

    def _check_rows(self, rows: int) -> None:
        if not 1 <= rows <= self._limits.rows:
            raise wrong("rows", rows, f"1 to {self._limits.rows} in one request")

    # -- what is unusual -----------------------------------------------------------------------

    def _carefully(
        self, body: bytes | bytearray
    ) -> tuple[tuple[Batch, ...], str | None, int | None]:
        """The same by core's own rules, which also say exactly what is wrong."""
        try:
            data = msgspec.json.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ValueError(f"body: found no JSON ({error}), allowed: a row or rows.") from None
        if not isinstance(data, dict):
            raise wrong("body", data, 'a row {column: value, …} or {"rows": [row, …]}')
        source = offset = None
        rows: list[Any] = [data]
        if isinstance(data.get("rows"), list):
            for key in data:
                if key not in _KEYS:
                    raise unknown("key", key, _KEYS, "body")
            rows, source, offset = data["rows"], data.get("source"), data.get("offset")
        self._check_rows(len(rows))
        pieces: list[Batch] = []
        start = 0
        for number, row in enumerate(rows):
            self._check_row(number, row)
        for names, group in groupby(rows, key=lambda row: frozenset(row)):
            part = list(group)
            unset = [n for n, name in enumerate(self.schema.names) if name not in names]
            self._check_fed(tuple(unset), start)
            schema = self.schema.select(n for n in self.schema.names if n in names)
            pieces.append(self._timely(_batch(part, schema, start), start))
            start += len(part)
        return tuple(pieces), source, offset

    def _check_row(self, number: int, row: Any) -> None:
        if not isinstance(row, dict):
            raise wrong(f"row {number}", row, "an object {column: value, …}")
        for name in row:
            if name not in self.schema:
                raise unknown("column", name, self.schema.names, f"row {number}")
        for name in self._blobs:
            if row.get(name) is None:
                continue
            try:
                row[name] = base64.b64decode(row[name], validate=True)
            except (TypeError, ValueError):
                where = f"row {number}, column {name!r}"
                raise wrong(where, row[name], "base64 or null") from None


def _batch(rows: list[Mapping[str, Any]], schema: Schema, start: int) -> Batch:
    """The rows of one piece; an error counts rows from the first of the post."""
    try:
        return Batch.from_rows(rows, schema)
    except ValueError:
        for number, row in enumerate(rows):
            try:
                Batch.from_rows([row], schema)
            except ValueError as error:
                text = str(error).replace("row 0", f"row {start + number}", 1)
                raise ValueError(text) from None
        raise


def _origin(source: Any, offset: Any) -> tuple[str | None, int]:
    """Where rows come from, as a post says it.

    Raises:
        ValueError: it says half of it, or something else.
    """
    if source is None and offset is None:
        return None, 0
    if not isinstance(source, str) or not 1 <= len(source) <= _LONGEST_SOURCE:
        raise wrong("source", source, f"1 to {_LONGEST_SOURCE} characters beside an offset")
    try:
        source.encode()
    except UnicodeEncodeError:
        raise wrong("source", source, "text that UTF-8 can carry") from None
    if type(offset) is not int or not 0 <= offset < 1 << 63:
        raise wrong("offset", offset, "an integer from 0 on, the position behind the last row")
    return source, offset
