"""Named columns of numpy arrays of equal length; to and from Arrow, rows and graph feeds."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any, cast

import numpy as np

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.need import need
from drivetrain.core.pixels import pixels
from drivetrain.core.schema import MISSING_INT, Dtype, Field, Schema

ArrowTable = Any
"""A ``pyarrow.Table`` or ``pyarrow.RecordBatch``; pyarrow ships no types."""

ArrowType = Any
"""A ``pyarrow.DataType``."""

Array = np.ndarray[Any, Any]
EPOCH = datetime(1970, 1, 1)
BYTES_SUFFIX = ".utf8"
"""A graph input ``title.utf8`` takes the column ``title`` as UTF-8 bytes, a padded matrix."""
PIXELS_SUFFIX = ".pixels"
"""A graph input ``photo.pixels`` takes the column ``photo`` decoded from its image format."""


@dataclass(frozen=True, eq=False)
class Categorical:
    """A column that names its distinct values once.

    Attributes:
        codes: int32 ``[rows]``, positions in ``values``.
        values: object ``[distinct]``, strings or bytes.
    """

    codes: Array
    values: Array

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> "Categorical":
        return Categorical(self.codes[rows], self.values)

    def decode(self) -> Array:
        """The column as an object array ``[rows]``."""
        return self.values[self.codes]


Column = Array | Categorical


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows as columns. Missing values are NaN, ``MISSING_INT``, ``""`` and ``b""``."""

    columns: Mapping[str, Column]

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of a batch have one length; found {lengths}")

    def __len__(self) -> int:
        return next((len(column) for column in self.columns.values()), 0)

    def __getitem__(self, name: str) -> Array:
        """One column, decoded to a plain array."""
        column = self.column(name)
        return column.decode() if isinstance(column, Categorical) else column

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def column(self, name: str) -> Column:
        """One column as it is held.

        Raises:
            ValueError: there is none; the error suggests the nearest name.
        """
        try:
            return self.columns[name]
        except KeyError:
            raise unknown("column", name, self.columns) from None

    def select(self, names: Iterable[str]) -> "Batch":
        """The columns called ``names``, in that order."""
        return Batch({name: self.column(name) for name in names})

    def with_columns(self, columns: Mapping[str, Column]) -> "Batch":
        """This batch with columns added or replaced."""
        return Batch({**self.columns, **columns})

    def slice(self, start: int, stop: int) -> "Batch":
        """Rows ``start`` to ``stop``, as views."""
        return Batch({name: column[start:stop] for name, column in self.columns.items()})

    def take(self, rows: Array) -> "Batch":
        """The rows at the given positions, copied."""
        return Batch({name: column[rows] for name, column in self.columns.items()})

    @classmethod
    def concat(cls, batches: Sequence["Batch"]) -> "Batch":
        """All rows of batches that have the same columns, in order."""
        if not batches:
            raise ValueError("nothing to concatenate: found 0 batches, allowed: 1 or more")
        if len(batches) == 1:
            return batches[0]
        return cls({n: np.concatenate([batch[n] for batch in batches]) for n in batches[0].columns})

    def rows(self) -> Iterator[dict[str, Any]]:
        """One dictionary of plain Python values a row."""
        columns = {name: self[name].tolist() for name in self.columns}
        for i in range(len(self)):
            yield {name: column[i] for name, column in columns.items()}

    # -- Arrow ---------------------------------------------------------------------------------

    @classmethod
    def from_arrow(cls, table: ArrowTable, schema: Schema) -> "Batch":
        """The columns of ``schema`` out of an Arrow table, missing values made explicit.

        Raises:
            ValueError: a column is absent or holds another type than the schema says.
        """
        columns: dict[str, Column] = {}
        for field in schema:
            position = table.schema.get_field_index(field.name)
            if position < 0:
                raise unknown("column", field.name, table.schema.names)
            column = table.column(position)
            if hasattr(column, "combine_chunks"):
                column = column.combine_chunks()
            columns[field.name] = _from_arrow(column, field)
        return cls(columns)

    def to_arrow(self) -> ArrowTable:
        """An Arrow table; missing values stay in their explicit form, floats' NaN apart."""
        pa = need("pyarrow", "data")
        arrays: dict[str, Any] = {}
        for name, column in self.columns.items():
            if isinstance(column, Categorical):
                arrays[name] = pa.DictionaryArray.from_arrays(column.codes, column.values)
            elif column.ndim > 1:
                flat = pa.array(column.reshape(-1))
                width = math.prod(column.shape[1:])
                arrays[name] = pa.FixedSizeListArray.from_arrays(flat, width)
            else:
                arrays[name] = pa.array(column)
        return pa.table(arrays)

    # -- rows as a person writes them ----------------------------------------------------------

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], schema: Schema) -> "Batch":
        """Rows as dictionaries, None for what is missing, checked against ``schema``.

        Timestamps are ISO 8601 strings, datetimes or integer microseconds.

        Raises:
            ValueError: a column is absent, unknown or of the wrong type; names row and column.
        """
        allowed = frozenset(schema.names)
        for number, row in enumerate(rows):
            if not row.keys() ^ allowed:
                continue
            for name in row:
                if name not in allowed:
                    raise unknown("column", name, schema.names, f"row {number}")
            absent = [name for name in schema.names if name not in row]
            raise ValueError(
                f"row {number}: found no column {', '.join(map(repr, absent))}, allowed: "
                f"a value or null for each of {', '.join(schema.names)}."
            )
        return cls({f.name: column_of([row[f.name] for row in rows], f) for f in schema})


def column_of(values: Sequence[Any], field: Field) -> Array:
    """Python values, None for what is missing, as the array that ``field`` describes.

    Raises:
        ValueError: a value of the wrong type; names the row and the column.
    """
    if field.shape:
        return _nested(values, field)
    convert = _CONVERT.get(field.dtype)
    assert convert is not None, f"{field.dtype} is no type of a raw column"
    allowed, function = convert
    found: list[Any] = []
    for number, value in enumerate(values):
        try:
            found.append(function(value))
        except (TypeError, ValueError, OverflowError):
            raise wrong(f"row {number}, column {field.name!r}", value, allowed) from None
    array = np.empty(len(found), dtype=field.numpy)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and infinite is missing
        array[:] = found
    return array


def _nested(values: Sequence[Any], field: Field) -> Array:
    rows: list[Array] = []
    for number, value in enumerate(values):
        where = f"row {number}, column {field.name!r}"
        if value is None and None not in field.shape:
            nothing = {"string": "", "bytes": b""}.get(field.dtype, missing_number(field))
            value = np.full([n or 0 for n in field.shape], nothing, field.numpy)
        try:
            row = _array(value, field)
        except (TypeError, ValueError, OverflowError):
            raise wrong(where, value, f"{field.dtype} values of shape {field.shape}") from None
        if len(row.shape) != len(field.shape) or any(
            allowed not in (None, n) for n, allowed in zip(row.shape, field.shape, strict=True)
        ):
            raise wrong(where, row.shape, f"shape {field.shape}")
        if rows and row.shape != rows[0].shape:
            raise wrong(where, row.shape, f"shape {rows[0].shape}, as the first row has")
        rows.append(row)
    return np.stack(rows) if rows else np.empty((0, *(n or 0 for n in field.shape)), field.numpy)


def _array(value: Any, field: Field) -> Array:
    """A value with a shape; its elements are held to what a column without one takes."""
    with np.errstate(over="ignore"):
        row = np.asarray(value, dtype=field.numpy)
    if row.dtype.kind == "O":
        inner = column_of(row.reshape(-1).tolist(), Field(field.name, field.dtype))
        return np.asarray(inner, dtype=field.numpy).reshape(row.shape)
    given = np.asarray(value)
    if row.dtype.kind in "iu" and given.dtype.kind == "f" and not np.array_equal(row, given):
        raise ValueError("an element is no integer")
    return row


def missing_number(field: Field) -> float | int:
    """How a missing element of a numeric field travels; narrow integers have only 0 for it."""
    if field.dtype.startswith("float"):
        return float("nan")
    return MISSING_INT if field.numpy == "int64" else 0


_NUMBERS: tuple[type[Any], ...] = (int, float, np.integer, np.floating, np.bool_)


def _string(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # a lone surrogate is no text that UTF-8 can carry
    return value


def _bytes(value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(cast("bytes", value))
    raise TypeError


def _integer(value: Any) -> int:
    if value is None:
        return MISSING_INT
    if not isinstance(value, _NUMBERS):
        raise TypeError
    if value != value or value in (math.inf, -math.inf):
        return MISSING_INT
    number = int(value)
    if number != value:
        raise TypeError
    if not -(2**63) <= number < 2**63:
        raise OverflowError
    return number


def _float(value: Any) -> float:
    if value is None:
        return float("nan")
    if not isinstance(value, _NUMBERS):
        raise TypeError
    return float(value)


def microseconds(value: Any) -> int:
    """A moment as int64 microseconds since 1970-01-01; aware ones are turned to UTC."""
    if value is None:
        return MISSING_INT
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if isinstance(value, datetime):
        # not by astimezone, which fails where UTC lies before the year 1 or behind 9999
        delta = value.replace(tzinfo=None) - EPOCH - (value.utcoffset() or timedelta())
        return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
    return _integer(value)


_CONVERT: Mapping[str, tuple[str, Any]] = {
    "string": ("a string or null", _string),
    "bytes": ("bytes, a string or null", _bytes),
    "int64": ("an integer, a bool or null", _integer),
    "float32": ("a number or null", _float),
    "float64": ("a number or null", _float),
    "timestamp": ("an ISO 8601 time, integer microseconds or null", microseconds),
}


# -- Arrow types -----------------------------------------------------------------------------------


def field_of_arrow(name: str, kind: ArrowType) -> Field:
    """The field that holds an Arrow column.

    Raises:
        ValueError: no field can hold that type.
    """
    types = need("pyarrow", "data").types
    if types.is_dictionary(kind):
        return field_of_arrow(name, kind.value_type)
    if types.is_fixed_size_list(kind):
        inner = field_of_arrow(name, kind.value_type)
        if inner.dtype in (*NUMERIC, "string"):
            return Field(name, inner.dtype, (kind.list_size, *inner.shape))
    tests: tuple[tuple[Dtype, str], ...] = (
        ("string", "string large_string string_view null"),
        ("bytes", "binary large_binary binary_view fixed_size_binary"),
        ("timestamp", "timestamp date"),
        ("int64", "integer boolean"),
        ("float32", "float16 float32"),
        ("float64", "float64 decimal"),
    )
    for dtype, names in tests:
        if any(getattr(types, f"is_{test}")(kind) for test in names.split()):
            return Field(name, dtype)
    raise wrong(
        f"column {name!r}",
        str(kind),
        "strings, bytes, integers, booleans, floats, decimals, dates, timestamps and "
        "fixed-size lists of numbers or strings",
    )


NUMERIC = ("int64", "float32", "float64")


def _from_arrow(column: Any, field: Field) -> Column:
    pa = need("pyarrow", "data")
    pc = need("pyarrow.compute", "data")
    where = f"column {field.name!r}"
    if pa.types.is_null(column.type):  # a column that is null throughout can be of any type
        column = column.cast(_arrow_type(field))
    found = field_of_arrow(field.name, column.type)
    if found.dtype != field.dtype and not (found.dtype in NUMERIC and field.dtype in NUMERIC):
        raise wrong(where, str(column.type), f"{field.dtype} as declared")
    if math.prod(n or 0 for n in found.shape) != math.prod(n or 0 for n in field.shape):
        raise wrong(where, str(column.type), f"{field.dtype} of shape {field.shape}")
    if field.shape and field.dtype == "string":
        return _texts(column.cast(_arrow_type(found)), field)  # views, codes and nulls too
    if field.dtype in ("string", "bytes"):
        if not pa.types.is_dictionary(column.type):
            column = pc.dictionary_encode(column)
        return _categorical(column, "" if field.dtype == "string" else b"")
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    rows = len(column)
    column = elements(column)
    try:
        return _numbers(column, field).reshape(rows, *field.shape)
    except pa.ArrowInvalid as error:
        raise wrong(where, str(error), f"{field.dtype} as declared") from None


def _texts(column: Any, field: Field) -> Array:
    """Fixed-size lists of strings as an object array; a missing one is the empty string."""
    found: Array = elements(column).fill_null("").to_numpy(zero_copy_only=False)
    return found.astype(object, copy=False).reshape(len(column), *field.shape)


def _numbers(column: Any, field: Field) -> Array:
    """Numbers, moments and booleans as one flat array of the field's type."""
    pa = need("pyarrow", "data")
    pc = need("pyarrow.compute", "data")
    kind = column.type
    whole = field.numpy == "int64"
    if field.dtype == "timestamp":
        if pa.types.is_date(kind):
            column, kind = column.cast(pa.timestamp("s")), pa.timestamp("s")
        # finer times lose what is below a microsecond; coarser ones must not overflow
        column = column.cast(pa.timestamp("us", kind.tz), safe=kind.unit in ("s", "ms"))
    elif whole and pa.types.is_floating(kind):
        column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, kind))
    elif not whole and not pa.types.is_floating(kind):
        if pa.types.is_boolean(kind):
            column = column.cast(pa.uint8())
        column = column.cast(pa.float64(), safe=False)  # rounds to the nearest, as floats do
    if whole:
        column = column.cast(pa.int64())
    if column.null_count:
        column = column.fill_null(pa.scalar(missing_number(field), column.type))
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and infinite is missing
        return column.to_numpy(zero_copy_only=False).astype(field.numpy, copy=False)


def _arrow_type(field: Field) -> ArrowType:
    pa = need("pyarrow", "data")
    kinds = {"string": pa.string(), "bytes": pa.binary(), "timestamp": pa.timestamp("us")}
    kind = kinds.get(field.dtype) or pa.from_numpy_dtype(field.numpy)
    for size in reversed(field.shape):
        kind = pa.list_(kind, size or 0)
    return kind


def elements(column: Any) -> Any:
    """The elements of fixed-size lists, however deep; a missing list has as many missing ones."""
    pa = need("pyarrow", "data")
    while pa.types.is_fixed_size_list(column.type):
        if not column.null_count:
            column = column.flatten()
            continue
        width: int = column.type.list_size
        start: int = column.offset * width
        stop: int = start + len(column) * width
        at = np.arange(start, stop)
        absent = np.repeat(~column.is_valid().to_numpy(zero_copy_only=False), width)
        column = column.values.take(pa.array(at, mask=absent))
    return column


def _categorical(column: Any, missing: str | bytes) -> Categorical:
    values: Array = column.dictionary.to_numpy(zero_copy_only=False).astype(object, copy=False)
    codes = column.indices
    if codes.null_count or column.dictionary.null_count:
        values = np.array([*(missing if v is None else v for v in values), missing], dtype=object)
        codes = codes.cast("int32").fill_null(len(values) - 1)
    return Categorical(codes.to_numpy(zero_copy_only=False).astype(np.int32, copy=False), values)


# -- what a graph is fed ---------------------------------------------------------------------------


def byte_matrix(values: Array, limit: int | None = None) -> Array:
    """Strings or bytes as a zero-padded uint8 matrix ``[rows, longest]``, at least one wide.

    Args:
        values: object ``[rows]``.
        limit: how many bytes of each value are kept; None keeps all.
    """
    encoded = [v.encode() if isinstance(v, str) else v for v in values.tolist()]
    if limit is not None:
        encoded = [value[:limit] for value in encoded]
    width = max((len(value) for value in encoded), default=0) or 1
    joined = b"".join(value.ljust(width, b"\0") for value in encoded)
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(encoded), width)


_LIMIT = re.compile(r"_max_(\d+)$")


def feed(batch: Batch, name: str, shape: Sequence[int | str | None]) -> Array:
    """The array that a graph's input ``name`` takes out of ``batch``.

    An input ``title.utf8`` takes the bytes of the column ``title``; a dimension named
    ``…_max_256`` in its ``shape`` says how many of them it reads. An input ``photo.pixels``
    takes the encoded images of the column ``photo`` as pixels of the size in its ``shape``.

    Raises:
        ValueError: the batch has no such column (the error suggests the nearest), or a value is
            no image.
    """
    if name in batch:
        return batch[name]
    if name.endswith(PIXELS_SUFFIX):
        images = name.removesuffix(PIXELS_SUFFIX)
        return pixels(batch[images], shape, images)
    if not name.endswith(BYTES_SUFFIX):
        raise unknown("column", name, batch.columns)
    last = shape[-1] if shape else None
    limit = _LIMIT.search(last) if isinstance(last, str) else None
    column = batch.column(name.removesuffix(BYTES_SUFFIX))
    most = int(limit.group(1)) if limit else None
    if isinstance(column, Categorical):
        return byte_matrix(column.values, most)[column.codes]
    return byte_matrix(column, most)
