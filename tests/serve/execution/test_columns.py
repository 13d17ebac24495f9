"""The compiled path from JSON rows to feeds gives what core's own, slower one gives."""

import base64
import io
import json
import math
import struct
from datetime import datetime

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drivetrain.core.batch import Batch, feed
from drivetrain.core.schema import Field, Schema
from drivetrain.serve.execution.columns import Columns
from drivetrain.serve.protocols.values import float32_text, nested

SCHEMA = Schema(
    (
        Field("we ird", "string"),
        Field("title", "bytes"),
        Field("n", "int64"),
        Field("x", "float32"),
        Field("y", "float64"),
        Field("at", "timestamp"),
        Field("pixels", "float32", (2, 2)),
        Field("photo", "bytes"),
    )
)
GRAPH_INPUTS = (
    *((name, ("rows",)) for name in ("we ird", "n", "x", "y", "at")),
    ("pixels", ("rows", 2, 2)),
    ("title.utf8", ("rows", "title_max_5")),
    ("photo.pixels", ("rows", 2, 3, 1)),
)
COLUMNS = Columns(SCHEMA, GRAPH_INPUTS)


def png(grey):
    file = io.BytesIO()
    Image.new("L", (3, 2), grey).save(file, "PNG")
    return file.getvalue()


def as_json(rows):
    """Rows as a client sends them."""
    return json.dumps(rows, default=lambda value: base64.b64encode(value).decode())


text = st.text(st.characters(codec="utf-8"), max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(min_value=datetime(1900, 1, 1)).map(str)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "we ird": st.none() | text,
            "title": st.none() | st.binary(max_size=8),
            "photo": st.none() | st.integers(0, 255).map(png),
            "n": st.none() | st.integers(-(2**63), 2**63 - 1),
            "x": st.none() | numbers | st.integers(-(2**53), 2**53),
            "y": st.none() | numbers,
            "at": st.none() | moments | st.integers(-(2**62), 2**62),
            "pixels": st.lists(
                st.lists(numbers.filter(lambda v: abs(v) < 1e38), min_size=2, max_size=2),
                min_size=2,
                max_size=2,
            ),
        }
    ),
    min_size=1,
    max_size=5,
)


def same(left, right):
    if left.dtype == object:
        return left.tolist() == right.tolist()
    return left.dtype == right.dtype and np.array_equal(
        left, right, equal_nan=left.dtype.kind == "f"
    )


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(rows, min_size=1, max_size=3))
def test_requests_together_are_the_batch_of_all_their_rows(requests):
    decode = msgspec.json.Decoder(list[COLUMNS.row]).decode
    found = COLUMNS.arrays([COLUMNS.of_rows(decode(as_json(rows))) for rows in requests])
    batch = Batch.from_rows([row for rows in requests for row in rows], SCHEMA)
    feeds = COLUMNS.feeds(found)
    assert all(same(a, batch[field.name]) for a, field in zip(found, SCHEMA, strict=True))
    assert set(feeds) == {name for name, _ in GRAPH_INPUTS}
    assert all(same(feeds[name], feed(batch, name, shape)) for name, shape in GRAPH_INPUTS)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(rows, min_size=1, max_size=3))
def test_rows_without_nested_values_are_written_at_once_and_are_the_same(requests):
    plain = Schema(tuple(field for field in SCHEMA if not field.shape))
    columns = Columns(plain, [])
    decode = msgspec.json.Decoder(list[columns.row]).decode
    rows = [[{k: v for k, v in row.items() if k != "pixels"} for row in rows] for rows in requests]
    asked = [columns.of_rows(decode(as_json(found))) for found in rows]
    batch = Batch.from_rows([row for found in rows for row in found], plain)
    found = columns.arrays(asked)
    assert all(same(a, batch[field.name]) for a, field in zip(found, plain, strict=True))
    mixed = columns.arrays([*asked[:-1], list(asked[-1])])
    assert all(same(a, b) for a, b in zip(found, mixed, strict=True))


def test_decoded_rows_are_columns_to_whoever_asks():
    columns = Columns(Schema((Field("x", "float32"), Field("n", "int64"))), [])
    decode = msgspec.json.Decoder(list[columns.row]).decode
    found = columns.of_rows(decode('[{"x": 1.5, "n": 2}, {"x": null, "n": 3}]'))
    assert (len(found), list(found), found[1:]) == (2, [[1.5, None], [2, 3]], [[2, 3]])
    assert len(columns.of_rows([])) == len(list(columns.of_rows([]))) == 0


def test_arrays_and_values_of_different_requests_join():
    columns = Columns(Schema((Field("x", "float32"),)), [("x", ("rows",))])
    (joined,) = columns.arrays([[[1.0, None]], [np.array([3], np.float32)], [[4.0]]])
    assert joined.dtype == np.float32
    assert joined[[0, 2, 3]].tolist() == [1, 3, 4]
    assert math.isnan(joined[1])


def test_a_graph_that_takes_an_undeclared_column_is_refused():
    with pytest.raises(ValueError, match=r"unknown column 'y' in the graph's inputs"):
        Columns(Schema((Field("x", "float32"),)), [("y", ("rows",))])


def test_rows_of_free_shape_share_no_batch():
    assert COLUMNS.stackable
    assert not Columns(Schema((Field("x", "float32", (None,)),)), []).stackable


@settings(derandomize=True, deadline=None, max_examples=400)
@given(st.floats(width=32))
def test_a_float32_reads_back_to_its_bits_in_at_most_nine_digits(value):
    found = float32_text(value)
    if not math.isfinite(value):
        assert found == "null"
        return
    assert struct.pack("f", float(json.loads(found))) == struct.pack("f", value)
    digits = found.lower().partition("e")[0].replace("-", "").replace(".", "").strip("0")
    assert len(digits) <= 9


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([0.1, np.nan], np.float32), ["0.1", "null"]),
        (np.array([0.1, -np.inf]), ["0.1", "null"]),
        (np.array([[1, 2], [3, 4]]), ["[1,2]", "[3,4]"]),
        (np.zeros((2, 2, 1), np.float32), ["[[0],[0]]"] * 2),
        (np.zeros((2, 0)), ["[]", "[]"]),
        (np.array([True, False]), ["true", "false"]),
        (np.array(['"', "β"], object), ['"\\""', '"β"']),
        (np.array([0.5], np.float16), ["0.5"]),
    ],
)
def test_arrays_of_every_kind_become_json_rows(array, expected):
    assert nested(array) == expected
    assert [json.loads(text) for text in nested(array)] == [json.loads(text) for text in expected]


def test_no_rows_of_a_shaped_column_are_no_rows():
    schema = Schema((Field("a", "float32", (3,)), Field("b", "float32")))
    assert len(Columns(schema, [("a", ("rows", 3)), ("b", ("rows",))]).of_rows([])) == 0
