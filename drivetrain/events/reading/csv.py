"""CSV as typed Arrow tables: types told from the text, and errors that name row and column."""

import io
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from drivetrain.core.errors import unknown
from drivetrain.core.need import need
from drivetrain.core.schema import Schema
from drivetrain.events.files import CSV
from drivetrain.events.reading.arrow import TYPES, schema_of_arrow

pc = need("pyarrow.compute", "data")

SAMPLE = 1 << 20
"""Bytes of text from which types are told."""

BLOCK = 4 << 20
"""Bytes of text that are parsed at a time."""

UTC = pa.timestamp("us", "UTC")
MOMENTS = (pa.timestamp("us"), UTC, pa.timestamp("ns"), pa.timestamp("ns", "UTC"))
CODE = r"^[+-]?0[0-9]"

Open = Callable[[], Any]


def sniff(open_file: Open, leaf: CSV, name: str) -> Schema:
    """The columns of a file with the types that its text shows, or that ``leaf`` declares.

    Raises:
        ValueError: the file is empty, names a column twice, or lacks one whose type is declared.
    """
    with open_file() as opened:
        names = _header(opened, leaf, name)
        declared = dict(leaf.types or ())
        for column in declared:
            if column not in names:
                raise unknown("column", column, names, f"CSV.types for {name}")
        untold = [column for column in names if column not in declared]
        kinds = _kinds(opened, leaf, names, untold, name)
    fields = [(n, TYPES[declared[n]] if n in declared else kinds[n]) for n in names]
    return schema_of_arrow(pa.schema(fields))


def tables(open_file: Open, leaf: CSV, schema: Schema, name: str) -> Iterator[pa.Table]:
    """The columns of ``schema``, a block of lines at a time.

    Raises:
        ValueError: a column is absent, or a value is not of its column's type; names the file,
            the line and the column.
    """
    kinds = {field.name: TYPES[field.dtype] for field in schema}
    declared = dict(leaf.types or ())
    with open_file() as opened:
        names = _header(opened, leaf, name)
        for field in schema:
            if field.name not in names:
                raise unknown("column", field.name, names, name)
        # times with a zone or without, integers as numbers or as true and false: what the text
        # of this very file says
        forms = [f.name for f in schema if f.dtype == "timestamp"]
        forms += [f.name for f in schema if f.dtype == "int64" and f.name not in declared]
        found = _kinds(opened, leaf, names, forms, name, certain=False)
        for column, kind in found.items():
            due = (
                pa.types.is_timestamp
                if kinds[column] == TYPES["timestamp"]
                else pa.types.is_boolean
            )
            kinds[column] = kind if due(kind) else kinds[column]
    with open_file() as opened:
        _header(opened, leaf, name)
        line = 2
        for block in blocks(opened, BLOCK, quotes=True):
            yield _parse(block, leaf, names, kinds, name, line)
            line += block.count(b"\n")


def blocks(opened: Any, size: int, *, quotes: bool = False) -> Iterator[bytes]:
    """Whole lines, about ``size`` bytes at a time; with ``quotes``, never cut within a pair.

    Blocks are read here, and parsed each by itself, since Arrow's streaming readers read ahead
    in threads that outlive a reader which is not read to its end.
    """
    while block := opened.read(size):
        block += opened.readline()
        if quotes and block.count(b'"') % 2:
            block += _rest_of_value(opened, size)
        if block.strip():
            yield block


def _rest_of_value(opened: Any, most: int) -> bytes:
    """The lines up to the next lone quote; none where a quote turns out to be mere text."""
    start, lines = opened.tell(), bytearray()
    while len(lines) < most and (line := opened.readline()):
        lines += line
        if line.count(b'"') % 2:
            return bytes(lines)
    opened.seek(start)
    return b""


def _header(opened: Any, leaf: CSV, name: str) -> list[str]:
    """The names of a file's columns; leaves the file at the line after them."""
    line = opened.readline()
    while line.count(b'"') % 2 and (more := opened.readline()):
        line += more
    if not line.strip():
        raise ValueError(
            f"{name}: found an empty file, allowed: a header line with names, and rows"
        )
    names = pacsv.read_csv(io.BytesIO(line), parse_options=_parsing(leaf)).schema.names
    twice = sorted({column for column in names if names.count(column) > 1})
    if twice:
        found = ", ".join(map(repr, twice))
        raise ValueError(f"{name}: found column {found} twice, allowed: each name once.")
    return names


def _parsing(leaf: CSV) -> pacsv.ParseOptions:
    return pacsv.ParseOptions(delimiter=leaf.delimiter, newlines_in_values=True)


def _parse(
    block: bytes, leaf: CSV, names: list[str], kinds: dict[str, Any], name: str, line: int
) -> pa.Table:
    """The rows of a block that begins at a line of the file."""

    def attempt(threads: bool) -> pa.Table:
        return pacsv.read_csv(
            io.BytesIO(block),
            # one block for Arrow, so that a value with newlines is never cut
            read_options=pacsv.ReadOptions(
                column_names=names, use_threads=threads, block_size=len(block) + 1
            ),
            parse_options=_parsing(leaf),
            convert_options=pacsv.ConvertOptions(
                column_types=kinds,
                include_columns=list(kinds),
                null_values=list(leaf.null),
                strings_can_be_null=True,
            ),
        )

    try:
        return attempt(threads=True)
    except pa.ArrowInvalid:
        try:
            attempt(threads=False)  # Arrow knows rows only when it reads with one thread
        except pa.ArrowInvalid as again:
            error = again
        raise _located(leaf, names, name, line, error) from None


def _kinds(
    opened: Any,
    leaf: CSV,
    names: list[str],
    columns: Collection[str],
    name: str,
    *,
    certain: bool = True,
) -> dict[str, pa.DataType]:
    """The types that the text of columns shows; with ``certain``, reads on while one has none."""
    kinds: dict[str, pa.DataType] = {}
    text = dict.fromkeys(columns, pa.string())
    if not columns:
        return kinds
    for block in blocks(opened, SAMPLE, quotes=True):
        table = _parse(block, leaf, names, text, name, 2)
        for column in columns:
            if column not in kinds and table[column].null_count < len(table):
                kinds[column] = _kind(table[column].drop_null())
        if len(kinds) == len(columns) or not certain:
            break
    return {column: kinds.get(column, pa.string()) for column in columns}


def _kind(texts: Any) -> pa.DataType:
    texts = pc.utf8_trim_whitespace(pc.unique(texts))
    if pc.any(pc.match_substring_regex(texts, CODE)).as_py():
        numbers: tuple[pa.DataType, ...] = ()
    else:
        numbers = (pa.int64(), pa.float64())
    for kind in (*numbers, *MOMENTS, pa.bool_()):
        try:
            texts.slice(0, 1).cast(kind)  # most types fail at once, and cheaply
            texts.cast(kind)
        except pa.ArrowInvalid:
            continue
        return kind
    return pa.string()


CONVERSION = re.compile(r"CSV column #(\d+): Row #(\d+): CSV conversion error to (.*?): (.*)", re.S)


def _located(leaf: CSV, names: list[str], name: str, line: int, error: Exception) -> ValueError:
    """The error of a value that is not of its column's type, with the line that holds it."""
    found = CONVERSION.search(str(error))
    if found is None:
        return ValueError(f"{name}, in or after line {line}: cannot be read as CSV: {error}")
    position, row, kind, what = found.groups()
    column = names[int(position)]
    value = what.removeprefix("invalid value ").strip()
    told = "declared" if column in dict(leaf.types or ()) else "the lines before it show"
    return ValueError(
        f"{name}, line {line + int(row) - 1}, column {column!r}: found {value}, allowed: {kind}, "
        f"as {told}. Declare types={{{column!r}: 'string'}} (or 'float64') if the column holds "
        "others, or name what marks a missing value in null=(…)."
    )
