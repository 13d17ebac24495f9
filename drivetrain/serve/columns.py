"""A bundle's raw columns on their way from JSON values to the arrays that its graph takes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from drivetrain.core.batch import (
    BYTES_SUFFIX,
    PIXELS_SUFFIX,
    Array,
    Batch,
    column_of,
    feed,
    microseconds,
)
from drivetrain.core.errors import unknown
from drivetrain.core.schema import MISSING_INT, Field, Schema

Values = list[Any] | Array
"""One column of a request: checked values, None for what is missing, or the array itself."""

_INT64: Any = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_JSON_TYPE: Mapping[str, Any] = {
    "string": str | None,
    "bytes": bytes | None,  # base64, as JSON has no bytes
    "int64": _INT64 | None,
    "float32": float | None,
    "float64": float | None,
    "timestamp": _INT64 | str | None,
}


class UnfitError(ValueError):
    """A value of the right type that cannot be fed, such as bytes that are no image."""


class Columns:
    """The columns of one bundle, with a compiled path for each.

    Values are checked when a request is decoded, and become arrays only when its batch runs:
    one array for all requests of the batch costs less than one for each.

    Args:
        inputs: the bundle's raw columns.
        graph_inputs: name and shape of each input of its graph.

    Raises:
        ValueError: the graph takes a column that the bundle does not declare.
    """

    def __init__(
        self, inputs: Schema, graph_inputs: Sequence[tuple[str, tuple[int | str | None, ...]]]
    ) -> None:
        self.schema = inputs
        self.fields = inputs.fields
        self.stackable = all(None not in field.shape for field in self.fields)
        """Whether rows of different requests have one shape, and so can share a batch."""
        self._to_array = [_to_array(field) for field in self.fields]
        position = {field.name: number for number, field in enumerate(self.fields)}
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
        self._converted = bool(self._moments or self._shaped)

    def of_rows(self, rows: Sequence[msgspec.Struct]) -> list[Values]:
        """The columns of decoded rows.

        Raises:
            ValueError: a time is not ISO 8601, or a nested value has another shape.
        """
        columns: list[Values]
        if len(rows) == 1:
            row = rows[0]
            columns = [[getattr(row, name)] for name in row.__struct_fields__]
        else:
            columns = [[getattr(row, name) for row in rows] for name in self.row.__struct_fields__]
        if self._converted:
            self._convert(columns)
        return columns

    def _convert(self, columns: list[Values]) -> None:
        for i in self._moments:
            columns[i] = [None if v is None else microseconds(v) for v in columns[i]]
        for i in self._shaped:
            columns[i] = column_of(columns[i], self.fields[i])  # pyright: ignore[reportArgumentType]

    def of_batch(self, batch: Batch) -> list[Values]:
        """The columns of a batch in the order of the schema."""
        return [batch[field.name] for field in self.fields]

    def arrays(self, requests: Sequence[Sequence[Values]]) -> list[Array]:
        """The columns of several requests, one after the other, as arrays ``[rows, …]``."""
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

    def feeds(self, arrays: Sequence[Array]) -> dict[str, Array]:
        """What the graph takes, out of the columns' arrays.

        Raises:
            UnfitError: a value is no image where the graph takes one; names row and column.
        """
        feeds = {name: arrays[i] for name, i in self._plain}
        try:
            for name, column, i, shape in self._bytes:
                feeds[name] = feed(Batch({column: arrays[i]}), name, shape)
        except ValueError as error:
            raise UnfitError(str(error)) from None
        return feeds


def _row_type(inputs: Schema) -> type[msgspec.Struct]:
    """The type whose decoder checks a row in C; what it refuses, core.batch explains."""
    names = [f"c{number}" for number in range(len(inputs))]
    types = [Any if field.shape else _JSON_TYPE.get(field.dtype, Any) for field in inputs]
    return msgspec.defstruct(
        "Row",
        list(zip(names, types, strict=True)),
        rename=dict(zip(names, inputs.names, strict=True)),
        forbid_unknown_fields=True,
        gc=False,
    )


def _to_array(field: Field) -> Callable[[list[Any]], Array]:
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
