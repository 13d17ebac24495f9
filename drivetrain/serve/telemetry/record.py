"""One answered request as rows of a table: the record, what was asked, what was answered."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.need import need
from drivetrain.core.schema import MISSING_INT, Dtype, Field
from drivetrain.serve.execution.models import Model, Role

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
        inputs: the raw columns, windows that were filled in among them.
        outputs: the predictions.
    """

    def __init__(self, model: Model) -> None:
        self.name = model.name
        self.version = model.version
        self.inputs = model.whole
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

    def each(values: list[Any], dtype: Any) -> Array:
        return np.repeat(np.array(values, dtype), sizes)

    def same(value: str) -> Array:
        return np.full(rows, value, np.object_)

    record: dict[str, tuple[Dtype, Array]] = {
        "request_id": ("string", each([e.request_id for e in events], np.object_)),
        "row": ("int64", np.arange(rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)),
        "at": ("timestamp", each([e.at for e in events], np.int64)),
        "model": ("string", same(layout.name)),
        "version": ("string", same(layout.version)),
        "role": ("string", each([e.role for e in events], np.object_)),
        "latency_us": ("int64", each([round(e.latency * 1e6) for e in events], np.int64)),
    }
    names = set(layout.inputs.names)
    columns = {
        f"served.{name}" if name in names else name: _values(*record[name]) for name in RECORD
    }
    for number, field in enumerate(layout.inputs):
        columns[field.name] = _column(field, [event.inputs[number] for event in events])
    for number, field in enumerate(layout.outputs):
        parts = [event.outputs[number] for event in events]
        if field.shape == (1,):
            field, parts = Field(field.name, field.dtype), [part[:, 0] for part in parts]
        columns[f"prediction.{field.name}"] = _column(field, parts)
    return pa.Table.from_arrays(list(columns.values()), names=list(columns))


def _column(field: Field, parts: Sequence[Array]) -> Any:
    """One Arrow column, null where a value is missing; of a shape, each row is a flat list."""
    pa = need("pyarrow", "data")
    if not field.shape:
        return _values(field.dtype, np.concatenate(parts))
    flat = np.concatenate([part.reshape(-1) for part in parts])
    values = _values(field.dtype, flat, missing=False)
    if None not in field.shape:
        width = math.prod(n or 0 for n in field.shape)
        return pa.FixedSizeListArray.from_arrays(values, width)
    sizes = [part[0].size for part in parts for _ in range(len(part))]
    ends = pa.py_buffer(np.cumsum([0, *sizes], dtype=np.int32))
    kind = pa.list_(values.type)
    return pa.ListArray.from_buffers(kind, len(sizes), [None, ends], children=[values])


def _values(dtype: Dtype, array: Array, missing: bool = True) -> Any:
    """A flat Arrow array out of its buffers.

    ``pyarrow.array`` would import pandas where it is installed, which takes more memory than the
    rest of a serving process.

    Args:
        dtype: what the values are.
        array: they themselves, ``[rows]``.
        missing: whether those that stand for a missing one become null.

    Raises:
        ValueError: the array has another shape than its column: buffers would not tell.
    """
    if array.ndim != 1:
        raise ValueError(f"a flat column: found the shape {array.shape}, allowed: (rows,).")
    pa = need("pyarrow", "data")
    if array.dtype.kind == "O":
        texts = [v.encode() if isinstance(v, str) else v or b"" for v in array.tolist()]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        known = np.diff(ends) > 0
        kind = pa.large_binary() if dtype == "bytes" else pa.large_string()
        buffers = [pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
        made = pa.Array.from_buffers(kind, len(array), [_bits(known, missing), *buffers])
        return made.cast(pa.binary() if dtype == "bytes" else pa.string())
    if array.dtype.kind == "b":
        return pa.Array.from_buffers(pa.bool_(), len(array), [None, _bits(array, True)])
    known = array == array if array.dtype.kind == "f" else array != MISSING_INT
    kind = pa.from_numpy_dtype(array.dtype)
    data = pa.py_buffer(np.ascontiguousarray(array))
    nulls = missing and array.dtype.kind in "fi"
    made = pa.Array.from_buffers(kind, len(array), [_bits(known, nulls), data])
    return made.cast(pa.timestamp("us")) if dtype == "timestamp" else made


def _bits(mask: Array, wanted: bool) -> Any:
    """A bitmap, as Arrow holds which values are there; None where all are."""
    pa = need("pyarrow", "data")
    if not wanted:
        return None
    return pa.py_buffer(np.packbits(mask, bitorder="little"))
