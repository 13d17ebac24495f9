"""Made rows follow what was fitted."""

import numpy as np
import pytest

from drivetrain.core.draw import draw, feeds
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.sketch import Counts, MomentsValue, QuantileSketch
from drivetrain.core.statistic import Moments, Quantiles, TopK


def test_columns_follow_their_statistics():
    schema = Schema((Field("a", "float64"), Field("b", "int64"), Field("c", "string")))
    fitted = {
        Moments("a"): MomentsValue(100, 0, 50.0, 40_000.0, 1.0, 90.0),
        Quantiles("b"): QuantileSketch.of(np.arange(1000, 2000, dtype=np.float64)),
        TopK("c"): Counts((("x", 90), ("y", 10))),
    }
    batch = draw(schema, fitted, 4000)
    a, b, c = (batch[name] for name in ("a", "b", "c"))
    known = a[~np.isnan(a)]
    assert 1.0 <= known.min() <= known.max() <= 90.0
    assert np.median(known) == pytest.approx(50, abs=3)
    found = b[b != MISSING_INT]
    assert 1000 <= found.min() <= found.max() <= 2000
    assert set(c) == {"x", "y", ""}
    assert np.mean(c == "x") == pytest.approx(0.9 * 0.95, abs=0.03)


def test_one_value_in_twenty_is_missing_in_the_form_of_its_type():
    types = ("float32", "float64", "int64", "timestamp", "string", "bytes")
    schema = Schema(tuple(Field(name, name) for name in types))
    batch = draw(schema, {}, 2000)
    missing = [np.isnan(batch[n]) for n in types[:2]] + [
        batch[n] == MISSING_INT for n in types[2:4]
    ]
    missing += [batch["string"] == "", batch["bytes"] == b""]
    for found in missing:
        assert found.mean() == pytest.approx(0.05, abs=0.02)


def test_the_same_seed_gives_the_same_rows():
    schema = Schema((Field("a", "float64"), Field("c", "string"), Field("v", "float32", (3,))))
    for name in schema.names:
        one, again, other = (draw(schema, {}, 50, seed)[name] for seed in (1, 1, 2))
        assert np.array_equal(one, again, equal_nan=name != "c")
        assert not np.array_equal(one, other, equal_nan=name != "c")


def test_text_becomes_bytes_and_images_become_noise_where_the_graph_takes_them():
    batch = draw(Schema((Field("title", "string"), Field("photo", "bytes"))), {}, 8)
    inputs = (("title.utf8", ("rows", "bytes_max_16")), ("photo.pixels", ("rows", 4, 4, 3)))
    schema = Schema(
        (Field("title.utf8", "uint8", (None,)), Field("photo.pixels", "uint8", (4, 4, 3)))
    )
    found = feeds(inputs, schema, batch)
    assert found["title.utf8"].shape[0] == 8
    assert found["title.utf8"].shape[1] <= 16
    assert found["photo.pixels"].shape == (8, 4, 4, 3)
    assert found["photo.pixels"].dtype == np.uint8
    assert found["photo.pixels"].std() > 10
