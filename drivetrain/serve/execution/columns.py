"""A bundle's raw columns on their way from JSON values to the arrays that its graph takes."""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any

import msgspec
import numpy as np

from drivetrain.core.batch import BYTES_SUFFIX, PIXELS_SUFFIX, Array, Batch, feed
from drivetrain.core.errors import unknown
from drivetrain.core.pixels import Unfit, pixels
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.values import column_of, microseconds
from drivetrain.serve.execution.packed import CODES, Form, Packed
from drivetrain.serve.native import compiled

Values = list[Any] | Array
"""One column of a request: checked values, None for what is missing, or the array itself."""

_INT64: Any = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
JSON_TYPE: Mapping[str, Any] = {
    "string": str | None,
    "bytes": bytes | None,  # base64, as JSON has no bytes
    "int64": _INT64 | None,
    "float32": float | None,
    "float64": float | None,
    "timestamp": _INT64 | str | None,
}
"""What a value of a raw column is in JSON, as msgspec's decoders check it."""


class UnfitError(ValueError):
    """A value of the right type that cannot be fed, such as bytes that are no image."""


class Rows(Sequence[Values]):
    """The columns of decoded rows, which stay rows until somebody wants a column.

    Args:
        rows: the values of each row, in the order of the columns.
    """

    __slots__ = ("rows",)

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows[0]) if self.rows else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not self.rows:
            raise IndexError(index)
        return [row[index] for row in self.rows]


class Columns:
    """The columns of one bundle, with a compiled path for each.

    Values are checked when a request is decoded, and become arrays only when its batch runs:
    one array for all requests of the batch costs less than one for each.

    Args:
        inputs: the bundle's raw columns.
        graph_inputs: name and shape of each input of its graph.
        filled: columns that the server puts behind those of a request before its batch runs.

    Raises:
        ValueError: the graph takes a column that the bundle does not declare.
    """

    def __init__(
        self,
        inputs: Schema,
        graph_inputs: Sequence[tuple[str, tuple[int | str | None, ...]]],
        filled: Sequence[Field] = (),
    ) -> None:
        self.schema = inputs
        self.fields = inputs.fields
        self.stackable = all(None not in field.shape for field in self.fields)
        """Whether rows of different requests have one shape, and so can share a batch."""
        self._to_array = [to_array(field) for field in self.fields]
        whole = (*self.fields, *filled)
        position = {field.name: number for number, field in enumerate(whole)}
        self._plain: list[tuple[str, int]] = []
        self._bytes: list[tuple[str, str, int, tuple[int | str | None, ...]]] = []
        for name, shape in graph_inputs:
            column = name.removesuffix(BYTES_SUFFIX).removesuffix(PIXELS_SUFFIX)
            if name in position:
                self._plain.append((name, position[name]))
            elif column in position:
                self._bytes.append((name, column, position[column], shape))
            else:
                raise unknown("column", name, position, "the graph's inputs")
        self.row = _row_type(inputs)
        """A msgspec Struct that holds one row, its fields in the order of the columns."""
        self._moments = [i for i, field in enumerate(self.fields) if field.dtype == "timestamp"]
        self._shaped = [i for i, field in enumerate(self.fields) if field.shape]
        packed: dict[str, list[int]] = {}
        for i, field in enumerate(self.fields):
            if field.dtype in CODES and not field.shape:
                packed.setdefault(CODES[field.dtype], []).append(i)
        self._packed = list(packed.items())
        of_group = {i for group in packed.values() for i in group}
        self._single = [i for i in range(len(self.fields)) if i not in of_group]
        self.form = None if self._bytes else Form.of(self.fields)
        """Where the columns lie in one piece of memory; None if they cannot."""
        self._reader = _reader(self.form, inputs.names)

    @property
    def plain(self) -> Sequence[tuple[str, int]]:
        """The graph's inputs that are columns as they are, each with the column's number."""
        return self._plain

    def read(self, body: bytes | bytearray, key: bytes, most: int) -> Packed | None:
        """The columns in the JSON of a row, or of at most so many rows in a list under ``key``.

        Returns:
            None where the compiled part is not there, or finds anything but numbers and nulls
            under the names of the columns: then the others read it, or say what is wrong.
        """
        if self._reader is None:
            return None
        found = self._reader.rows(body, key, most)
        return None if found is None else Packed(self.form, *found)  # pyright: ignore[reportArgumentType]

    def read_tensors(self, body: bytes | bytearray, most: int) -> tuple[Packed, int, int] | None:
        """The columns in the JSON of a request of V2, and where its list of inputs begins and ends.

        Returns:
            None as :meth:`read` does.
        """
        found = None if self._reader is None else self._reader.tensors(body, most)
        if found is None:
            return None
        data, rows, start, end = found
        return Packed(self.form, data, rows), start, end  # pyright: ignore[reportArgumentType]

    def of_rows(self, rows: Sequence[msgspec.Struct]) -> Sequence[Values]:
        """The columns of decoded rows.

        Raises:
            ValueError: a time is not ISO 8601, or a nested value has another shape.
        """
        found = [msgspec.structs.astuple(row) for row in rows]
        if self._moments:
            found = [self._timed(row) for row in found]
        if not self._shaped or not found:
            return Rows(found)
        columns: list[Values] = list(Rows(found))
        for i in self._shaped:
            columns[i] = column_of(columns[i], self.fields[i])  # pyright: ignore[reportArgumentType]
        return columns

    def _timed(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """A row with microseconds where it has a time as text."""
        values = list(row)
        for i in self._moments:
            if values[i] is not None:
                values[i] = microseconds(values[i])
        return tuple(values)

    def of_batch(self, batch: Batch) -> list[Values]:
        """The columns of a batch in the order of the schema."""
        return [batch[field.name] for field in self.fields]

    def arrays(self, requests: Sequence[Sequence[Values]]) -> list[Array]:
        """The columns of several requests, one after the other, as arrays ``[rows, …]``."""
        kinds = {type(request) for request in requests}
        if kinds == {Rows}:
            return self._of_rows(list(chain.from_iterable([r.rows for r in requests])))  # pyright: ignore[reportAttributeAccessIssue]
        form = self.form
        if kinds == {Packed} and form is not None:  # a view of each column of each takes longer
            rows = sum([request.rows for request in requests])  # pyright: ignore[reportAttributeAccessIssue]
            memory = np.empty(form.row * rows // 8 + 1, np.int64).data.cast("B")
            self.fill(requests, memory, rows)
            return [form.column(memory, number, rows) for number in range(len(self.fields))]
        merged: list[Array] = []
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and infinite is missing
            if len(requests) == 1:
                for values, convert in zip(requests[0], self._to_array, strict=True):
                    merged.append(convert(values) if type(values) is list else values)  # type: ignore[arg-type]
                return merged
            for parts, convert in zip(zip(*requests, strict=True), self._to_array, strict=True):
                if all(type(part) is list for part in parts):
                    merged.append(convert([value for part in parts for value in part]))
                else:
                    merged.append(
                        np.concatenate([convert(p) if type(p) is list else p for p in parts])
                    )
        return merged

    def fill(self, requests: Sequence[Sequence[Values]], memory: memoryview, rows: int) -> None:
        """Write the columns of several requests, one request after the other, as the form says.

        Args:
            requests: theirs.
            memory: gets ``form.row`` bytes for each row.
            rows: of all of them together.
        """
        form = self.form
        assert form is not None, "whoever has memory for it has asked"
        if len(requests) == 1 and type(requests[0]) is Packed:
            memory[: form.row * rows] = requests[0].data
            return
        kinds = {type(request) for request in requests}
        if kinds == {Packed}:
            if self._reader is not None:
                self._reader.gather([request.data for request in requests], memory, rows)  # pyright: ignore[reportAttributeAccessIssue]
            else:
                _gather(form, requests, memory, rows)  # pyright: ignore[reportArgumentType]
        elif kinds == {Rows}:
            self._fill_rows(list(chain.from_iterable([r.rows for r in requests])), memory)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            for number, array in enumerate(self.arrays(requests)):
                form.column(memory, number, rows)[:] = array

    def _fill_rows(self, rows: list[tuple[Any, ...]], memory: memoryview) -> None:
        form = self.form
        assert form is not None
        columns = list(zip(*rows, strict=True))
        for code, group in form.groups:
            values = chain.from_iterable([columns[i] for i in group])
            start = form.before[group[0]] * len(rows)
            try:
                struct.pack_into(f"{len(group) * len(rows)}{code}", memory, start, *values)
            except (struct.error, OverflowError):  # a missing value, or one beyond float32
                for i, array in self._one_by_one(columns, group):
                    form.column(memory, i, len(rows))[:] = array

    def _of_rows(self, rows: list[tuple[Any, ...]]) -> list[Array]:
        """The same of requests that are all rows, where columns of one type are written at once.

        An array for each of forty columns would take longer than most graphs do.
        """
        columns = list(zip(*rows, strict=True))
        merged: list[Any] = [None] * len(columns)
        for code, group in self._packed:
            block = np.empty((len(group), len(rows)), code)
            values = chain.from_iterable([columns[i] for i in group])
            try:
                struct.pack_into(f"{block.size}{code}", block.data, 0, *values)
            except (struct.error, OverflowError):  # a missing value, or one beyond float32
                for i, array in self._one_by_one(columns, group):
                    merged[i] = array
                continue
            for i, array in zip(group, block, strict=True):
                merged[i] = array
        for i, array in self._one_by_one(columns, self._single):
            merged[i] = array
        return merged

    def _one_by_one(
        self, columns: Sequence[tuple[Any, ...]], group: Sequence[int]
    ) -> Iterator[tuple[int, Array]]:
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and infinite is missing
            for i in group:
                yield i, self._to_array[i](list(columns[i]))

    def array(self, number: int, values: Values) -> Array:
        """The values of one column as an array ``[rows, …]``."""
        if type(values) is not list:
            return values  # pyright: ignore[reportReturnType]
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and infinite is missing
            return self._to_array[number](values)

    def feeds(self, arrays: Sequence[Array], unfit: list[Unfit] | None = None) -> dict[str, Array]:
        """What the graph takes, out of the columns' arrays.

        Args:
            arrays: of the columns.
            unfit: gets the values that are no images where the graph takes some; black is fed in
                their place.

        Raises:
            UnfitError: a value cannot be fed, such as one that is no image without ``unfit``;
                names row and column.
        """
        feeds = {name: arrays[i] for name, i in self._plain}
        try:
            for name, column, i, shape in self._bytes:
                if name.endswith(PIXELS_SUFFIX):
                    feeds[name] = pixels(arrays[i], shape, column, unfit)
                else:
                    feeds[name] = feed(Batch({column: arrays[i]}), name, shape)
        except ValueError as error:
            raise UnfitError(str(error)) from None
        return feeds


def _row_type(inputs: Schema) -> type[msgspec.Struct]:
    """The type whose decoder checks a row in C; what it refuses, core.batch explains."""
    names = [f"c{number}" for number in range(len(inputs))]
    types = [Any if field.shape else JSON_TYPE.get(field.dtype, Any) for field in inputs]
    return msgspec.defstruct(
        "Row",
        list(zip(names, types, strict=True)),
        rename=dict(zip(names, inputs.names, strict=True)),
        forbid_unknown_fields=True,
        gc=False,
    )


def _reader(form: Form | None, names: Sequence[str]) -> Any:
    """What reads JSON straight into the form, None where there is no such."""
    if compiled is None or form is None:
        return None
    texts = tuple(name.encode() for name in names)  # none that JSON escapes: msgspec refuses them
    return compiled.Reader(texts, form.codes, tuple(form.before))


def _gather(form: Form, requests: Sequence[Packed], memory: memoryview, rows: int) -> None:
    """Join requests that are packed alike, column by column."""
    for code, group in form.groups:
        block = form.block(memory, code, group, rows)
        start = 0
        for request in requests:
            stop = start + request.rows
            block[:, start:stop] = form.block(request.data, code, group, request.rows)
            start = stop


class Arrays(Sequence[Array]):
    """The columns of one request as arrays, each made only when somebody looks.

    Args:
        columns: of the bundle.
        values: the columns of the request, which nobody changes any more.
    """

    __slots__ = ("_columns", "_values")

    def __init__(self, columns: Columns, values: Sequence[Values]) -> None:
        self._columns = columns
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self._values)))]
        return self._columns.array(index, self._values[index])


def to_array(field: Field) -> Callable[[list[Any]], Array]:
    """What makes checked values of a column, None for what is missing, an array."""
    if field.shape:
        return lambda values: column_of(values, field)
    if field.dtype == "float32":
        return lambda values: np.array(values, np.float32)  # None becomes NaN
    if field.dtype == "float64":
        return lambda values: np.array(values, np.float64)
    if field.numpy == "int64":
        return _integers
    missing = "" if field.dtype == "string" else b""
    return lambda values: np.array([missing if v is None else v for v in values], np.object_)


def _integers(values: list[Any]) -> Array:
    if None in values:
        values = [MISSING_INT if value is None else value for value in values]
    return np.array(values, np.int64)
