"""The feature that turns a text into a bag of hashed n-grams."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from drivetrain.core.errors import wrong
from drivetrain.core.polynomial import BASE, WORD, signed
from drivetrain.core.schema import FeatureField, Schema
from drivetrain.features.column import TEXTS, OneColumn, place, positive
from drivetrain.features.hashing import mixed, modulo, powers

if TYPE_CHECKING:
    from drivetrain.core.measured import Fitted
    from drivetrain.features.builder import Builder

NEXT = 0xD6E8FEB86659FD93
"""What the hash of an n-gram is multiplied with before the next unit's is added: odd."""


@dataclass(frozen=True)
class Text(OneColumn):
    """A bag of hashed n-grams of words or characters; 0 pads it.

    ASCII letters are taken in lower case. A word is a run of ASCII letters, digits and bytes
    beyond ASCII; a character is a UTF-8 code point. The first units of the text are taken, as
    many as leave room for all their n-grams in ``length``: 32 words for single words and pairs
    in 64. First come the n-grams of the first kind in the order of the text, then those of the
    next. The hash is the one of :class:`Hash`, the same on every machine.

    Attributes:
        bins: the cardinality; n-grams are hashed to 1 … ``bins - 1``.
        ngrams: how many units an n-gram has, such as ``(1, 2)`` for words and pairs of words.
        unit: ``word`` or ``char``.
        length: positions of the bag.
        max_bytes: how many UTF-8 bytes of the text are read.
    """

    bins: int = 4096
    ngrams: tuple[int, ...] = (1, 2)
    unit: Literal["word", "char"] = "word"
    length: int = 64
    max_bytes: int = 512

    takes: ClassVar[tuple[str, ...]] = TEXTS
    instead: ClassVar[str] = "Scale and Bucket take numbers"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(f"{place(self)}: bins", self.bins, least=2)
        if not self.ngrams or len(set(self.ngrams)) < len(self.ngrams):
            raise wrong(f"{place(self)}: ngrams", self.ngrams, "different integers, at least one")
        for n in self.ngrams:
            positive(f"{place(self)}: ngrams", n)
        if self.unit not in ("word", "char"):
            raise wrong(f"{place(self)}: unit", self.unit, "'word' or 'char'")
        positive(f"{place(self)}: length", self.length)
        positive(f"{place(self)}: max_bytes", self.max_bytes, least=min(self.ngrams))

    @property
    def units(self) -> int:
        """How many words or characters of the text are taken."""
        units = 0
        while sum(max(units + 1 - n + 1, 0) for n in self.ngrams) <= self.length:
            units += 1
        return min(units, self.max_bytes)

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """A bag."""
        self.source(schema)
        return FeatureField(
            name=self.name,
            kind="bag",
            width=self.length,
            cardinality=self.bins,
            columns=self.columns,
        )

    def nodes(self, graph: "Builder", schema: Schema, fitted: "Fitted") -> str:
        """Int64 ``[rows, length]``."""
        hashes, there = self._hashes(graph)
        grams: list[str] = []
        valid: list[str] = []
        for n in self.ngrams:
            if n <= self.units:
                grams.append(self._grams(graph, hashes, n))
                valid.append(_part(graph, there, n - 1, self.units))
        bins = graph.constant(self.bins - 1, "uint64")
        ids = modulo(graph, mixed(graph, graph.concat(grams, axis=1)), bins)
        zero = graph.constant(0, "int64")
        bag = graph.op("Where", graph.concat(valid, axis=1), ids, zero)
        spare = self.length - sum(max(self.units - n + 1, 0) for n in self.ngrams)
        return graph.op("Pad", bag, graph.ints(0, 0, 0, spare)) if spare else bag

    def _hashes(self, graph: "Builder") -> tuple[str, str]:
        """The hash of each unit, int64 ``[rows, units]``, and whether there is one.

        All bytes of a unit are added up in its own slot, weighted by their position in the text,
        which the inverse power of the position where it begins makes one within the unit.
        Slot 0 is for what comes before the first unit, the last for what comes after those taken.
        """
        text = graph.bytes(self.column, self.max_bytes)
        at = graph.cast(text, "int32")
        byte = graph.op("Gather", graph.constant(self._values(), "int64"), at)
        begins = self._begins(graph, at, byte)
        axis = graph.constant(1, "int64")
        ordinal = graph.op("CumSum", graph.cast(begins, "int64"), axis)
        slot = graph.op("Min", ordinal, graph.constant(self.units + 1, "int64"))
        rows = graph.op("Shape", text, start=0, end=1)
        shape = graph.op("Concat", rows, graph.ints(self.units + 2), axis=0)
        empty = graph.op("Expand", graph.constant(0, "int64"), shape)
        weighted = graph.op("Mul", byte, powers(graph, BASE, self.max_bytes, text))
        back = powers(graph, pow(BASE, -1, WORD), self.max_bytes, text, first=0)
        start = graph.op("Where", begins, back, graph.constant(0, "int64"))
        sums, starts = (
            graph.op("ScatterElements", empty, slot, values, axis=1, reduction="add")
            for values in (weighted, start)
        )
        hashes = _part(graph, graph.op("Mul", sums, starts), 1, self.units + 1)
        return hashes, graph.cast(_part(graph, starts, 1, self.units + 1), "bool")

    def _values(self) -> list[int]:
        """What each byte counts for: 0 between words."""
        lower = [b + 32 if chr(b).isupper() and b < 128 else b for b in range(256)]
        if self.unit == "char":
            return lower
        return [b if b >= 128 or chr(b).isalnum() else 0 for b in lower]

    def _begins(self, graph: "Builder", at: str, byte: str) -> str:
        """Where a unit begins, boolean ``[rows, longest]``."""
        if self.unit == "char":
            first = [0 < b < 0x80 or b >= 0xC0 for b in range(256)]
            return graph.op("Gather", graph.constant(first, "bool"), at)
        inside = graph.cast(byte, "bool")
        before = graph.op("Pad", inside, graph.ints(0, 1, 0, -1))
        return graph.op("And", inside, graph.op("Not", before))

    def _grams(self, graph: "Builder", hashes: str, n: int) -> str:
        """The hash of each run of ``n`` units, int64 ``[rows, units - n + 1]``."""
        gram = _part(graph, hashes, 0, self.units - n + 1)
        for i in range(1, n):
            scaled = graph.op("Mul", gram, graph.constant(signed(NEXT), "int64"))
            gram = graph.op("Add", scaled, _part(graph, hashes, i, self.units - n + 1 + i))
        return gram


def _part(graph: "Builder", matrix: str, start: int, stop: int) -> str:
    """Columns ``start`` to ``stop``."""
    return graph.op("Slice", matrix, graph.ints(start), graph.ints(stop), graph.ints(1))
