"""Encoded images as the pixels that a graph takes, decoded with Pillow.

At the door of the graph and not within: ONNX Runtime has no kernel for ``ImageDecoder``, and the
operator of onnxruntime-extensions 0.15 never returns from a truncated JPEG and ends the process
at one that is none. Training and serving come through this door alike.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drivetrain.core.errors import wrong
from drivetrain.core.need import need

Array = np.ndarray[Any, Any]
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
MOST = 1 << 26
"""The most pixels that an image may have before it is resized: a bound on memory."""


@dataclass(frozen=True)
class Unfit:
    """A value that is no image.

    Attributes:
        row: where it stands.
        column: whose it is.
        value: itself.
        allowed: what would have been one, and what a decoder says of this one.
    """

    row: int
    column: str
    value: Any
    allowed: str

    def error(self, before: int = 0) -> ValueError:
        """The error that names it, of rows that begin ``before`` rows later."""
        place = f"row {self.row - before}, column {self.column!r}"
        return wrong(place, self.value, self.allowed)


def pixels(
    values: Array,
    shape: Sequence[int | str | None],
    column: str,
    unfit: list[Unfit] | None = None,
) -> Array:
    """Encoded images as uint8 ``[rows, height, width, channels]``; black for empty values.

    An image is turned to grey (one channel) or RGB (three), without its transparency, and
    resized to fit by Pillow's antialiased bilinear filter. Of an animation the first image
    counts; an orientation that is noted in the file does not.

    Args:
        values: object ``[rows]``, bytes.
        shape: ``[rows, height, width, channels]``, as the graph's input has it.
        column: for the errors.
        unfit: gets what is no image, in whose place is black then; without it that is an error.

    Raises:
        ValueError: a value is no image of a known format, or a broken or too large one; names
            the row and the column.
    """
    need("PIL.Image", "image")  # not within the loop, whose errors are the images'
    height, width, channels = (int(n) for n in shape[1:] if n is not None)
    result = np.zeros((len(values), height, width, channels), dtype=np.uint8)
    for row, value in enumerate(values.tolist()):
        if not len(value):
            continue
        try:
            result[row] = _decode(value, height, width, channels)
        except Exception as error:  # Pillow's decoders raise what their formats make them raise
            allowed = f"a whole {', '.join(FORMATS)} image or nothing ({error})"
            found = Unfit(row, column, value, allowed)
            if unfit is None:
                raise found.error() from None
            unfit.append(found)
    return result


def _decode(data: bytes, height: int, width: int, channels: int) -> Array:
    image_module = need("PIL.Image", "image")
    with image_module.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MOST:
            raise ValueError(f"{image.width} × {image.height} pixels, allowed: {MOST} in all")
        plain = image.convert("L" if channels == 1 else "RGB")
        if plain.size != (width, height):
            plain = plain.resize((width, height), image_module.Resampling.BILINEAR)
        return np.asarray(plain).reshape(height, width, channels)
