"""Made rows that look like those a bundle was trained on, drawn from its statistics."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from drivetrain.core.batch import PIXELS_SUFFIX, Array, Batch, Column, feed
from drivetrain.core.measured import Fitted, Value
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.sketch import Counts, MomentsValue, QuantileSketch
from drivetrain.core.statistic import Moments

_MISSING_SHARE = 0.05
_WORDS = ("a", "made", "text", "of", "several", "words", "Straße", "数据")


def draw(schema: Schema, fitted: Fitted, rows: int, seed: int = 0) -> Batch:
    """Rows whose columns follow the fitted statistics, each column by itself.

    One value in twenty is missing. A number without statistics is standard normal, an integer 0,
    for it may be a place in a table of unknown size; a text is a few words.

    Args:
        schema: the raw columns of a bundle.
        fitted: its statistics.
        rows: how many.
        seed: the same one gives the same rows.
    """
    random = np.random.default_rng(seed)
    columns: dict[str, Column] = {}
    for field in schema:
        known = [fitted[s] for s in fitted if s.column == field.name and _tells_values(s)]
        columns[field.name] = _column(field, known, rows, random)
    return Batch(columns)


def feeds(
    inputs: Sequence[tuple[str, tuple[int | str | None, ...]]],
    schema: Schema,
    batch: Batch,
    seed: int = 0,
) -> dict[str, Array]:
    """What a graph takes, out of drawn rows; where it takes pixels they are noise.

    Args:
        inputs: name and shape of each of the graph's inputs.
        schema: their types.
        batch: the drawn rows.
        seed: of the noise.
    """
    random = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for name, shape in inputs:
        if name.endswith(PIXELS_SUFFIX):
            inner = [n if isinstance(n, int) else 32 for n in shape[1:]]
            noise = random.integers(0, 256, (len(batch), *inner))
            arrays[name] = noise.astype(schema.field(name).numpy)
        else:
            arrays[name] = feed(batch, name, shape)
    return arrays


def _tells_values(statistic: Any) -> bool:
    return not isinstance(statistic, Moments) or statistic.of == "identity"


def _column(field: Field, known: Sequence[Value], rows: int, random: np.random.Generator) -> Array:
    if field.shape:
        shape = (rows, *(4 if n is None else n for n in field.shape))
        if field.numpy == "object":
            return _texts(field, rows * int(np.prod(shape[1:])), random).reshape(shape)
        drawn = random.normal(size=shape) if "float" in field.numpy else np.zeros(shape)
        return drawn.astype(field.numpy)
    values = _values(field, known, rows, random)
    values[random.random(rows) < _MISSING_SHARE] = _missing(field)
    return values


def _values(field: Field, known: Sequence[Value], rows: int, random: np.random.Generator) -> Array:
    for value in known:
        if isinstance(value, Counts) and value.values:
            share = np.array([count for _, count in value.values], np.float64)
            places = random.choice(len(share), rows, p=share / share.sum())
            found = [value.values[int(place)][0] for place in places]
            return np.array(found, np.object_ if field.numpy == "object" else field.numpy)
    if field.numpy == "object":
        return _texts(field, rows, random)
    drawn = random.normal(size=rows) if "float" in field.numpy else np.zeros(rows)
    for value in known:
        if isinstance(value, QuantileSketch) and value.count:
            drawn = value.quantile(random.random(rows))
            break
        if isinstance(value, MomentsValue) and value.count:
            near = random.normal(value.mean, value.std, rows)
            drawn = np.clip(near, value.minimum, value.maximum)
    return np.nan_to_num(drawn).astype(field.numpy)


def _texts(field: Field, rows: int, random: np.random.Generator) -> Array:
    words = [" ".join(random.choice(_WORDS, random.integers(1, 12))) for _ in range(rows)]
    return np.array([w.encode() if field.dtype == "bytes" else w for w in words], np.object_)


def _missing(field: Field) -> Any:
    if field.numpy == "object":
        return b"" if field.dtype == "bytes" else ""
    return MISSING_INT if field.numpy == "int64" else np.nan
