"""Named columns of numpy arrays of equal length; to and from Arrow, rows and graph feeds."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any

import numpy as np

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.need import need
from drivetrain.core.schema import MISSING_INT, Field, Schema

if TYPE_CHECKING:
    import pyarrow as pa

Array = np.ndarray[Any, Any]
EPOCH = datetime(1970, 1, 1)
BYTES_SUFFIX = ".utf8"
"""A graph input ``title.utf8`` takes the column ``title`` as UTF-8 bytes, a padded matrix."""


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
    def from_arrow(cls, table: "pa.RecordBatch | pa.Table", schema: Schema) -> "Batch":
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

    def to_arrow(self) -> "pa.Table":
        """An Arrow table; missing values stay in their explicit form, floats' NaN apart."""
        pa = need("pyarrow", "data")
        arrays: dict[str, Any] = {}
        for name, column in self.columns.items():
            if isinstance(column, Categorical):
                arrays[name] = pa.DictionaryArray.from_arrays(column.codes, column.values)
            elif column.ndim > 1:
                flat = pa.array(column.reshape(-1))
                width = int(np.prod(column.shape[1:]))
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
        allowed = set(schema.names)
        for number, row in enumerate(rows):
            if row.keys() == allowed:
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
    array[:] = found
    return array


def _nested(values: Sequence[Any], field: Field) -> Array:
    shape = tuple(-1 if n is None else n for n in field.shape)
    rows: list[Array] = []
    for number, value in enumerate(values):
        where = f"row {number}, column {field.name!r}"
        try:
            row = np.asarray(value, dtype=field.numpy)
        except (TypeError, ValueError, OverflowError):
            raise wrong(where, value, f"{field.dtype} numbers of shape {field.shape}") from None
        same = len(row.shape) == len(shape) and all(
            b in (-1, a) for a, b in zip(row.shape, shape, strict=True)
        )
        if not same:
            raise wrong(where, row.shape, f"shape {field.shape}")
        rows.append(row)
    return np.stack(rows) if rows else np.empty((0, *(max(n, 0) for n in shape)), field.numpy)


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
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError
    return bytes(value)


def _integer(value: Any) -> int:
    if value is None:
        return MISSING_INT
    if isinstance(value, float | np.floating) and not float(value).is_integer():
        raise TypeError
    if not isinstance(value, int | float | np.integer | np.floating | np.bool_):
        raise TypeError
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise OverflowError
    return number


def _float(value: Any) -> float:
    if value is None:
        return float("nan")
    if not isinstance(value, int | float | np.integer | np.floating | np.bool_):
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
        if value.tzinfo is not None:
            value = value.astimezone(UTC).replace(tzinfo=None)
        delta = value - EPOCH
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


def field_of_arrow(name: str, kind: "pa.DataType") -> Field:
    """The field that holds an Arrow column.

    Raises:
        ValueError: no field can hold that type.
    """
    types = need("pyarrow", "data").types
    if types.is_dictionary(kind):
        return field_of_arrow(name, kind.value_type)
    if types.is_fixed_size_list(kind):
        inner = field_of_arrow(name, kind.value_type)
        return Field(name, inner.dtype, (kind.list_size, *inner.shape))
    tests = (
        ("string", (types.is_string, types.is_large_string, types.is_string_view, types.is_null)),
        ("bytes", (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)),
        ("timestamp", (types.is_timestamp, types.is_date)),
        ("int64", (types.is_integer, types.is_boolean)),
        ("float32", (types.is_float16, types.is_float32)),
        ("float64", (types.is_float64, types.is_decimal)),
    )
    for dtype, checks in tests:
        if any(check(kind) for check in checks):
            return Field(name, dtype)
    raise wrong(
        f"column {name!r}",
        str(kind),
        "strings, bytes, integers, booleans, floats, decimals, dates, timestamps and "
        "fixed-size lists of numbers",
    )


def _from_arrow(column: Any, field: Field) -> Column:
    pa = need("pyarrow", "data")
    pc = need("pyarrow.compute", "data")
    kind = column.type
    found = field_of_arrow(field.name, kind)
    if pa.types.is_null(kind):  # a column that is null throughout can be of any type
        column, found = column.cast(_arrow_type(field)), field
    numeric = ("int64", "float32", "float64")
    if found.dtype != field.dtype and not (found.dtype in numeric and field.dtype in numeric):
        raise wrong(f"column {field.name!r}", str(kind), f"{field.dtype} as declared")
    if field.shape:
        width = int(np.prod([n or 0 for n in field.shape]))
        values = column.flatten() if column.null_count == 0 else _fill_lists(column, width)
        array = values.to_numpy(zero_copy_only=False)
        return array.astype(field.numpy, copy=False).reshape(len(column), *field.shape)
    if field.dtype in ("string", "bytes"):
        if not pa.types.is_dictionary(kind):
            column = pc.dictionary_encode(column)
        return _categorical(column, "" if field.dtype == "string" else b"")
    if field.dtype == "timestamp":
        if pa.types.is_date(kind):
            column = column.cast(pa.timestamp("us"))
        column = column.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False)
        column = column.cast(pa.int64())
    elif pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.int64() if field.dtype == "int64" else pa.uint8())
    missing = MISSING_INT if field.numpy == "int64" else float("nan")
    if field.numpy == "int64" and not pa.types.is_int64(column.type):
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise wrong(f"column {field.name!r}", str(error), "integers") from None
    elif field.numpy != "int64" and not pa.types.is_floating(column.type):
        column = column.cast(_arrow_type(field))
    if column.null_count:
        column = column.fill_null(missing)
    return column.to_numpy(zero_copy_only=False).astype(field.numpy, copy=False)


def _arrow_type(field: Field) -> Any:
    pa = need("pyarrow", "data")
    kinds = {"string": pa.string(), "bytes": pa.binary(), "timestamp": pa.timestamp("us")}
    kind = kinds.get(field.dtype) or pa.from_numpy_dtype(field.numpy)
    for size in reversed(field.shape):
        kind = pa.list_(kind, size or 0)
    return kind


def _fill_lists(column: Any, width: int) -> Any:
    """The elements of fixed-size lists, a missing list as ``width`` missing elements."""
    pa = need("pyarrow", "data")
    pc = need("pyarrow.compute", "data")
    flat = column.values.slice(column.offset * width, len(column) * width)
    valid = pa.array(np.repeat(column.is_valid().to_numpy(zero_copy_only=False), width))
    missing = pa.scalar(float("nan") if pa.types.is_floating(flat.type) else 0, flat.type)
    return pc.if_else(valid, pc.fill_null(flat, missing), missing)


def _categorical(column: Any, missing: str | bytes) -> Categorical:
    values = column.dictionary.to_numpy(zero_copy_only=False)
    codes = column.indices
    if column.null_count or column.dictionary.null_count:
        values = np.append(values, None)
        values[[value is None for value in values]] = missing
        codes = codes.cast("int32").fill_null(len(values) - 1)
    codes = codes.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return Categorical(codes, values.astype(object, copy=False))


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
    ``…_max_256`` in its ``shape`` says how many of them it reads.

    Raises:
        ValueError: the batch has no such column; the error suggests the nearest.
    """
    if name in batch:
        return batch[name]
    if not name.endswith(BYTES_SUFFIX):
        raise unknown("column", name, batch.columns)
    last = shape[-1] if shape else None
    limit = _LIMIT.search(last) if isinstance(last, str) else None
    column = batch.column(name.removesuffix(BYTES_SUFFIX))
    most = int(limit.group(1)) if limit else None
    if isinstance(column, Categorical):
        return byte_matrix(column.values, most)[column.codes]
    return byte_matrix(column, most)
