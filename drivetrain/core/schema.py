"""Fields and schemas: one description that Arrow, ONNX and the serving protocol share."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from drivetrain.core.errors import unknown, wrong

Dtype = Literal[
    "string",
    "bytes",
    "bool",
    "timestamp",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]
"""The element types. ``timestamp`` is int64 microseconds since 1970-01-01, with no time zone."""

ONNX_TYPE: Mapping[str, int] = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "timestamp": 7,
    "string": 8,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "uint32": 12,
    "uint64": 13,
}
"""``onnx.TensorProto`` element types; ``bytes`` enters a graph as a uint8 matrix instead."""

V2_TYPE: Mapping[str, str] = {
    "float32": "FP32",
    "uint8": "UINT8",
    "int8": "INT8",
    "uint16": "UINT16",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "timestamp": "INT64",
    "string": "BYTES",
    "bytes": "BYTES",
    "bool": "BOOL",
    "float16": "FP16",
    "float64": "FP64",
    "uint32": "UINT32",
    "uint64": "UINT64",
}
"""Datatypes of the Open Inference Protocol V2."""

MISSING_INT = -(2**63)
"""How a missing int64 or timestamp travels; a missing float is NaN, a missing string ``""``."""


@dataclass(frozen=True)
class Field:
    """One named column or tensor.

    Attributes:
        name: the column's name.
        dtype: the element type. Columns of events are ``string``, ``bytes``, ``int64``,
            ``float32``, ``float64`` or ``timestamp``; tensors may have any.
        shape: the shape of one row; ``()`` for a scalar column, None for a free dimension.
    """

    name: str
    dtype: Dtype
    shape: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise unknown("dtype", self.dtype, get_args(Dtype), f"field {self.name!r}")

    @property
    def numpy(self) -> str:
        """The name of the numpy dtype of one element; strings and bytes are objects."""
        if self.dtype in ("string", "bytes"):
            return "object"
        return "int64" if self.dtype == "timestamp" else self.dtype

    @property
    def onnx(self) -> int:
        """The ``onnx.TensorProto`` element type."""
        return ONNX_TYPE[self.dtype]

    @property
    def v2(self) -> str:
        """The datatype in the Open Inference Protocol V2."""
        return V2_TYPE[self.dtype]


@dataclass(frozen=True)
class Schema:
    """Fields in order, found by name."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"a schema names each field once; found twice: {', '.join(twice)}")

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __contains__(self, name: object) -> bool:
        return any(field.name == name for field in self.fields)

    @property
    def names(self) -> tuple[str, ...]:
        """The fields' names, in order."""
        return tuple(field.name for field in self.fields)

    def field(self, name: str, where: str = "") -> Field:
        """The field called ``name``.

        Raises:
            ValueError: there is none; the error suggests the nearest name.
        """
        for field in self.fields:
            if field.name == name:
                return field
        raise unknown("column", name, self.names, where)

    def select(self, names: Iterable[str], where: str = "") -> "Schema":
        """The fields called ``names``, in that order."""
        return Schema(tuple(self.field(name, where) for name in names))

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data for a manifest."""
        return [{**asdict(field), "shape": list(field.shape)} for field in self.fields]

    @classmethod
    def from_json(cls, data: Iterable[Mapping[str, Any]]) -> "Schema":
        """The schema that :meth:`to_json` wrote."""
        return cls(tuple(Field(f["name"], f["dtype"], tuple(f["shape"])) for f in data))


_ESCAPED = re.compile(r'["\\\x00-\x1f]')
"""What JSON does not write in a name as it is."""


def check_served(names: Iterable[str]) -> None:
    """Hold that a request can bring columns of these names; others may be in events alone.

    Raises:
        ValueError: a name is empty, or has a quote, a backslash or a control character in it.
    """
    for name in names:
        if not name or _ESCAPED.search(name):
            allowed = "a name without quotes, backslashes and control characters; rename() gives it"
            raise wrong("a column that the server is to be sent", name, allowed)


Kind = Literal["dense", "index", "bag", "tensor"]


@dataclass(frozen=True, kw_only=True)
class FeatureField:
    """What one fitted feature gives a model.

    Attributes:
        name: the feature's name; a module may name a ``forward`` parameter after it.
        kind: ``dense`` (float32 ``[rows, width]``, a slice of the block ``dense``), ``index``
            (int64 ``[rows, width]``, a slice of the block ``index``), ``bag`` (int64
            ``[rows, width]`` padded with 0, a tensor of its own) or ``tensor`` (float32
            ``[rows, *shape]``, a tensor of its own).
        width: columns within its block, or positions of a bag.
        cardinality: for ``index`` and ``bag``: values are in ``[0, cardinality)``.
        shape: for ``tensor``: the shape of one row.
        columns: the raw columns that it reads.
    """

    name: str
    kind: Kind
    width: int = 1
    cardinality: int = 0
    shape: tuple[int, ...] = ()
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeatureSchema:
    """The fitted features in block order; a model factory is called with one.

    All dense features lie side by side in one float32 block ``dense`` and all index features in
    one int64 block ``index``: two tensors instead of dozens, so that a batch costs two copies
    and a module can embed every index with one table. Bags and tensors stay apart.
    """

    features: tuple[FeatureField, ...]

    def of(self, kind: Kind) -> tuple[FeatureField, ...]:
        """The features of one kind, in block order."""
        return tuple(f for f in self.features if f.kind == kind)

    @property
    def dense_width(self) -> int:
        """Columns of the block ``dense``."""
        return sum(f.width for f in self.of("dense"))

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """The cardinality of each column of the block ``index``."""
        return tuple(f.cardinality for f in self.of("index") for _ in range(f.width))

    def slice(self, name: str) -> slice:
        """The columns of a dense or index feature within its block."""
        kind = self.field(name).kind
        start = 0
        for feature in self.of(kind):
            if feature.name == name:
                return slice(start, start + feature.width)
            start += feature.width
        raise AssertionError(name)

    def field(self, name: str) -> FeatureField:
        """The feature called ``name``.

        Raises:
            ValueError: there is none; the error suggests the nearest name.
        """
        for feature in self.features:
            if feature.name == name:
                return feature
        raise unknown("feature", name, [f.name for f in self.features])

    @property
    def tensors(self) -> Schema:
        """The blocks and the tensors of their own: what the feature graph gives."""
        fields: list[Field] = []
        if self.dense_width:
            fields.append(Field("dense", "float32", (self.dense_width,)))
        if self.cardinalities:
            fields.append(Field("index", "int64", (len(self.cardinalities),)))
        for feature in self.features:
            if feature.kind == "bag":
                fields.append(Field(feature.name, "int64", (feature.width,)))
            elif feature.kind == "tensor":
                fields.append(Field(feature.name, "float32", feature.shape))
        return Schema(tuple(fields))

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data for a manifest."""
        return [
            {**asdict(f), "shape": list(f.shape), "columns": list(f.columns)} for f in self.features
        ]

    @classmethod
    def from_json(cls, data: Iterable[Mapping[str, Any]]) -> "FeatureSchema":
        """The schema that :meth:`to_json` wrote."""
        return cls(
            tuple(
                FeatureField(
                    name=f["name"],
                    kind=f["kind"],
                    width=f["width"],
                    cardinality=f["cardinality"],
                    shape=tuple(f["shape"]),
                    columns=tuple(f["columns"]),
                )
                for f in data
            )
        )
