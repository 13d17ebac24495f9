"""One answered request as rows of a table: the record, what was asked, what was answered."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.need import need
from drivetrain.core.schema import MISSING_INT, Field
from drivetrain.serve.models import Model, Role

RECORD = ("request_id", "row", "at", "model", "version", "role", "latency_us")
"""What each event says of its request; ``row`` counts from 0 within it. Where a raw column has
such a name, the record's own column is called ``served.<name>``."""

_ENVELOPE = 512
_OBJECT = 56
"""Bytes of an event and of a string in CPython, beside its characters and the pointer to it."""


class Layout:
    """What events need to know of the version that answered, without keeping its graph loaded.

    Attributes:
        name: the alias.
        version: its version.
        inputs: the raw columns.
        outputs: the predictions.
    """

    def __init__(self, model: Model) -> None:
        self.name = model.name
        self.version = model.version
        self.inputs = model.inputs
        self.outputs = model.bundle.manifest.outputs
        self._row = 0
        self._looked: list[int] = []
        for number, field in enumerate(self.inputs):
            if field.numpy == "object" or None in field.shape:
                self._looked.append(number)
            else:
                values = math.prod(n or 0 for n in field.shape)
                self._row += np.dtype(field.numpy).itemsize * values

    def size(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> int:
        """About how many bytes of memory an event with these columns takes.

        A column whose rows all have one size is not looked at: to cut it out of its batch costs
        more than the rest of keeping an event.
        """
        size = _ENVELOPE + self._row * len(outputs[0])
        for array in (*(inputs[number] for number in self._looked), *outputs):
            size += array.nbytes
            if array.dtype.kind == "O":
                values = array.reshape(-1).tolist()
                size += _OBJECT * len(values) + sum(map(len, values))
        return size


class Event(NamedTuple):
    """One answered request.

    Attributes:
        rows: how many it asked for.
        layout: of the version that answered.
        role: what that version was to its alias at the time.
        request_id: its name.
        at: microseconds since 1970, UTC.
        latency: seconds from the request's arrival to its answer; of a shadow, of its run.
        inputs: the raw columns, ``[rows, …]`` each.
        outputs: the predictions.
        size: about how many bytes of memory all that takes.
    """

    rows: int
    layout: Layout
    role: Role
    request_id: str
    at: int
    latency: float
    inputs: Sequence[Array]
    outputs: Sequence[Array]
    size: int


def table(layout: Layout, events: Sequence[Event]) -> Any:
    """The rows of some events of one version, as a ``pyarrow.Table``.

    It has the columns of :data:`RECORD`, each raw column under its own name, null where it is
    missing, and ``prediction.<output>`` for each output.
    """
    pa = need("pyarrow", "data")
    sizes = np.array([event.rows for event in events])
    rows = int(sizes.sum())

    def each(values: list[Any], dtype: Any) -> Any:
        return np.repeat(np.array(values, dtype), sizes)

    record = {
        "request_id": pa.array(each([e.request_id for e in events], np.object_)),
        "row": pa.array(np.arange(rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)),
        "at": pa.array(each([e.at for e in events], np.int64)).cast(pa.timestamp("us")),
        "model": pa.repeat(layout.name, rows),
        "version": pa.repeat(layout.version, rows),
        "role": pa.array(each([e.role for e in events], np.object_)),
        "latency_us": pa.array(each([round(e.latency * 1e6) for e in events], np.int64)),
    }
    names = set(layout.inputs.names)
    columns = {f"served.{name}" if name in names else name: record[name] for name in RECORD}
    for number, field in enumerate(layout.inputs):
        columns[field.name] = _column(field, [event.inputs[number] for event in events])
    for number, field in enumerate(layout.outputs):
        parts = [event.outputs[number] for event in events]
        if field.shape == (1,):
            field, parts = Field(field.name, field.dtype), [part[:, 0] for part in parts]
        columns[f"prediction.{field.name}"] = _column(field, parts)
    return pa.table(columns)


def _column(field: Field, parts: Sequence[Array]) -> Any:
    """One Arrow column, null where a value is missing."""
    pa = need("pyarrow", "data")
    if field.shape:
        rows = [row.reshape(-1).tolist() for part in parts for row in part]
        kind = pa.from_numpy_dtype(field.numpy)
        fixed = None not in field.shape
        width = int(np.prod([n or 0 for n in field.shape]))
        return pa.array(rows, pa.list_(kind, width) if fixed else pa.list_(kind))
    array = np.concatenate(parts)
    if field.numpy == "object":
        kind = pa.binary() if field.dtype == "bytes" else pa.string()
        return pa.array([value or None for value in array.tolist()], kind)
    if field.numpy == "int64":
        column = pa.array(array, mask=array == MISSING_INT)
        return column.cast(pa.timestamp("us")) if field.dtype == "timestamp" else column
    return pa.array(array, from_pandas=True)  # NaN becomes null
