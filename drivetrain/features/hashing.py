"""Features without a vocabulary: hashed values, and crosses of features that are positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from drivetrain.core.errors import wrong
from drivetrain.core.polynomial import BASE, WORD, signed
from drivetrain.core.schema import MISSING_INT, FeatureField, Schema
from drivetrain.core.statistic import Statistic
from drivetrain.features.column import (
    INTEGERS,
    TEXTS,
    OneColumn,
    Together,
    identifier,
    place,
    positive,
)

if TYPE_CHECKING:
    from drivetrain.core.measured import Fitted
    from drivetrain.core.seams import Feature
    from drivetrain.features.builder import Builder


@dataclass(frozen=True)
class Hash(Together, OneColumn):
    """A string, bytes or an integer hashed to one of ``bins`` positions; 0 is missing.

    Text is summed as ``byte[i] * BASE^(i + 1)`` modulo 2^64, so that the zero bytes of padding
    add nothing (and a value of zero bytes only is missing), and mixed by MurmurHash3's 64-bit
    finaliser (Appleby 2016), as integers are straight away. The hash is the same in every
    process, on every machine.

    Attributes:
        bins: how many positions; the cardinality is one more.
        max_bytes: how many UTF-8 bytes of a text count.
    """

    bins: int
    max_bytes: int = 1024

    takes: ClassVar[tuple[str, ...]] = (*TEXTS, *INTEGERS)
    instead: ClassVar[str] = "Bucket and Scale take other numbers"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(f"{place(self)}: bins", self.bins)
        positive(f"{place(self)}: max_bytes", self.max_bytes)

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """One index column."""
        self.source(schema)
        return FeatureField(
            name=self.name, kind="index", cardinality=self.bins + 1, columns=self.columns
        )

    @classmethod
    def together(
        cls, graph: "Builder", features: Sequence["Hash"], schema: Schema, fitted: "Fitted"
    ) -> str:
        """Int64 ``[features, rows]``."""
        text = [schema.field(f.column).dtype in TEXTS for f in features]
        values = graph.stack(
            [
                _text(graph, f) if is_text else graph.column(f.column)
                for f, is_text in zip(features, text, strict=True)
            ]
        )
        absent = graph.constant([[0 if is_text else MISSING_INT] for is_text in text], "int64")
        bins = graph.constant([[f.bins] for f in features], "uint64")
        positions = modulo(graph, mixed(graph, values), bins)
        zero = graph.constant(0, "int64")
        return graph.op("Where", graph.op("Equal", values, absent), zero, positions)


@dataclass(frozen=True, init=False)
class Cross(Together):
    """The combination of several features that are positions, as one position.

    0 is for rows in which any of them is 0 (missing). While all other combinations fit into
    ``size`` each has a position of its own; else they are hashed to 1 … ``size - 1``.

    Attributes:
        features: two or more of Index, Bucket, Hash, Id, or another of one index column.
        size: the greatest cardinality.
        name: the feature's name, a Python identifier; by default made of the others' names.
    """

    features: tuple[Any, ...]
    size: int
    name: str

    def __init__(self, *features: "Feature", size: int = 1 << 16, name: str = "") -> None:
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "name", name)
        if len(features) < 2:
            raise wrong("Cross(…)", features, "two features or more")
        object.__setattr__(self, "name", identifier(self, name, *(f.name for f in features)))
        positive(f"{place(self)}: size", size, least=2)

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that its features read."""
        return tuple(dict.fromkeys(c for f in self.features for c in f.columns))

    def statistics(self) -> Sequence[Statistic]:
        """What its features must know."""
        return tuple(dict.fromkeys(s for f in self.features for s in f.statistics()))

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """One index column."""
        all_of_them = prod(self._sizes(schema, fitted)) + 1
        cardinality = min(all_of_them, self.size)
        return FeatureField(
            name=self.name, kind="index", cardinality=cardinality, columns=self.columns
        )

    def _sizes(self, schema: Schema, fitted: "Fitted") -> list[int]:
        """How many positions each feature has beside 0."""
        sizes: list[int] = []
        for feature in self.features:
            field = feature.field(schema, fitted)
            if field.kind != "index" or field.width != 1:
                found = f"{type(feature).__name__}, {field.width} × {field.kind}"
                raise wrong(place(self), found, "features of one index column, such as Index")
            sizes.append(field.cardinality - 1)
        return sizes

    @classmethod
    def together(
        cls, graph: "Builder", features: Sequence["Cross"], schema: Schema, fitted: "Fitted"
    ) -> str:
        """Int64 ``[features, rows]``."""
        return graph.concat([feature._position(graph, schema, fitted) for feature in features])

    def _position(self, graph: "Builder", schema: Schema, fitted: "Fitted") -> str:
        sizes = self._sizes(schema, fitted)
        codes = graph.concat([_positions(f, graph, schema, fitted) for f in self.features])
        strides = [[signed(prod(sizes[i + 1 :]))] for i in range(len(sizes))]
        zero, one = graph.constant(0, "int64"), graph.constant(1, "int64")
        steps = graph.op("Mul", graph.op("Sub", codes, one), graph.constant(strides, "int64"))
        combination = graph.op("ReduceSum", steps, graph.ints(0), keepdims=1)
        if prod(sizes) + 1 <= self.size:
            position = graph.op("Add", combination, one)
        else:
            bins = graph.constant(self.size - 1, "uint64")
            position = modulo(graph, mixed(graph, combination), bins)
        least = graph.op("ReduceMin", codes, graph.ints(0), keepdims=1)
        return graph.op("Where", graph.op("Equal", least, zero), zero, position)


def _positions(feature: Any, graph: "Builder", schema: Schema, fitted: "Fitted") -> str:
    """An index feature's column, ``[1, rows]``."""
    if isinstance(feature, Together):
        return type(feature).together(graph, [feature], schema, fitted)
    return graph.transpose(feature.nodes(graph, schema, fitted))


def _text(graph: "Builder", feature: Hash) -> str:
    """The weighted sum of a text's bytes, int64 ``[rows]``."""
    text = graph.bytes(feature.column, feature.max_bytes)
    weights = powers(graph, BASE, feature.max_bytes, text)
    column = graph.op("Unsqueeze", weights, graph.ints(1))  # a vector fails on zero rows
    sums = graph.op("MatMul", graph.cast(text, "int64"), column)
    return graph.op("Squeeze", sums, graph.ints(1))


def powers(graph: "Builder", base: int, most: int, text: str, first: int = 1) -> str:
    """Powers of ``base`` modulo 2^64, one for each byte of a byte matrix: int64 ``[longest]``.

    Args:
        graph: the builder.
        base: an odd number.
        most: the greatest width that the matrix can have.
        text: the byte matrix.
        first: the exponent of the first byte.
    """
    table = graph.constant([signed(pow(base, first + i, WORD)) for i in range(most)], "int64")
    width = graph.op("Shape", text, start=1, end=2)
    return graph.op("Slice", table, graph.ints(0), width)


def mixed(graph: "Builder", values: str) -> str:
    """MurmurHash3's 64-bit finaliser (``fmix64``) of int64 numbers, as uint64."""
    bits = graph.cast(values, "uint64")
    shift = graph.constant(33, "uint64")
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        bits = graph.op("BitwiseXor", bits, graph.op("BitShift", bits, shift, direction="RIGHT"))
        bits = graph.op("Mul", bits, graph.constant(factor, "uint64"))
    return graph.op("BitwiseXor", bits, graph.op("BitShift", bits, shift, direction="RIGHT"))


def modulo(graph: "Builder", bits: str, bins: str) -> str:
    """``1 + bits mod bins`` as int64."""
    rest = graph.cast(graph.op("Mod", bits, bins), "int64")
    return graph.op("Add", rest, graph.constant(1, "int64"))
