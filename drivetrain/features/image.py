"""The feature that turns an image, encoded or as pixels, into a normalised tensor."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from drivetrain.core.errors import wrong
from drivetrain.core.schema import FeatureField, Schema
from drivetrain.features.column import OneColumn, place, positive
from drivetrain.features.numbers import numbers, present

if TYPE_CHECKING:
    from drivetrain.core.measured import Fitted
    from drivetrain.features.builder import Builder

WHITE = 255.0


@dataclass(frozen=True)
class Image(OneColumn):
    """An image of fixed size, ``(pixel / 255 - mean) / std`` for each channel; zeros if missing.

    A column of bytes holds BMP, GIF, JPEG, PNG or WebP files, which are decoded and resized on
    the way into the graph (see :mod:`drivetrain.core.pixels`; that needs Pillow). A column of
    numbers holds the pixels themselves, ``[height, width, channels]`` or, for one channel,
    ``[height, width]``, from 0 to 255, and is resized within the graph by the same antialiased
    bilinear filter, without Pillow's rounding. Pixels beyond 0 to 255 are held to that range,
    and missing ones are black.

    Attributes:
        height: of the tensor ``[channels, height, width]``.
        width: of the tensor.
        channels: 1 for grey, 3 for RGB.
        mean: for each channel, or one for all; of pixels from 0 to 1.
        std: for each channel, or one for all.
    """

    height: int
    width: int
    channels: int = 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    takes: ClassVar[tuple[str, ...]] = ("bytes", "uint8", "int64", "float32", "float64")
    instead: ClassVar[str] = "Text, Index and Hash take strings"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(f"{place(self)}: height", self.height)
        positive(f"{place(self)}: width", self.width)
        if self.channels not in (1, 3):
            raise wrong(f"{place(self)}: channels", self.channels, "1 (grey) or 3 (RGB)")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, self.channels) or not all(map(math.isfinite, values)):
                raise wrong(f"{place(self)}: {name}", values, f"1 or {self.channels} numbers")
        if not all(value >= 1e-6 for value in self.std):
            raise wrong(f"{place(self)}: std", self.std, "numbers of 1e-6 or more")

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """A tensor."""
        source = self.typed(schema)
        if source.dtype == "bytes":
            self.source(schema)
        elif source.shape[2:] != (() if len(source.shape) == 2 else (self.channels,)) or (
            len(source.shape) == 2 and self.channels != 1
        ):
            allowed = f"(height, width, {self.channels})"
            allowed += " or (height, width)" if self.channels == 1 else ""
            raise wrong(f"{place(self)}: column {self.column!r}", source.shape, allowed)
        shape = (self.channels, self.height, self.width)
        return FeatureField(name=self.name, kind="tensor", shape=shape, columns=self.columns)

    def nodes(self, graph: "Builder", schema: Schema, fitted: "Fitted") -> str:
        """Float32 ``[rows, channels, height, width]``."""
        if schema.field(self.column).dtype == "bytes":
            shape = (self.height, self.width, self.channels)
            values = graph.cast(graph.pixels(self.column, shape), "float32")
            image = graph.op("Transpose", values, perm=[0, 3, 1, 2])
            there = graph.op("Reshape", present(graph, self.column), graph.ints(-1, 1, 1, 1))
        else:
            image, there = self._resized(graph, schema)
        mean = graph.constant([[[WHITE * value]] for value in self.mean], "float32")
        factor = graph.constant([[[1 / (WHITE * value)]] for value in self.std], "float32")
        normal = graph.op("Mul", graph.op("Sub", image, mean), factor)
        return graph.op("Where", there, normal, graph.constant(0.0, "float32"))

    def _resized(self, graph: "Builder", schema: Schema) -> tuple[str, str]:
        """Float32 ``[rows, channels, height, width]``, and which rows have any pixel."""
        source = schema.field(self.column)
        values, found = numbers(graph, [self.column], widen=source.dtype != "float32")
        zero = graph.constant(0.0, "float32" if source.dtype == "float32" else "float64")
        filled = graph.cast(graph.op("Where", found, values, zero), "float32")
        limits = (graph.constant(x, "float32") for x in (0.0, WHITE))
        held = graph.op("Clip", filled, *limits)
        axes = range(1, len(source.shape) + 1)
        some = graph.op("ReduceMax", graph.cast(found, "float32"), graph.ints(*axes), keepdims=0)
        there = graph.op("Reshape", graph.cast(some, "bool"), graph.ints(-1, 1, 1, 1))
        if len(source.shape) == 2:
            planes = graph.op("Unsqueeze", held, graph.ints(1))
        else:
            planes = graph.op("Transpose", held, perm=[0, 3, 1, 2])
        if source.shape[:2] == (self.height, self.width):
            return planes, there
        rows = graph.op("Shape", planes, start=0, end=2)
        size = graph.op("Concat", rows, graph.ints(self.height, self.width), axis=0)
        # weights beyond the border are left out, or edges would differ from Pillow's
        filter_ = {"mode": "linear", "antialias": 1, "exclude_outside": 1}
        resized = graph.op("Resize", planes, "", "", size, **filter_)
        return resized, there
