"""Every Arrow type that a column may have, with nulls, slices and offsets."""

import datetime as dt
import decimal
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.arrow import field_of_arrow
from drivetrain.core.batch import Batch, Categorical
from drivetrain.core.schema import MISSING_INT, Dtype, Field, Schema

DAY = 86_400_000_000
NONE = MISSING_INT
DECIMAL = [decimal.Decimal("1.25"), None, decimal.Decimal("-3.5")]

# values with a null in the middle, their Arrow type, the field, what comes out
TYPES: list[tuple[list[Any], Any, Dtype, list[Any]]] = [
    *(([1, None, 3], kind, "int64", [1, MISSING_INT, 3]) for kind in (pa.int8(), pa.int64())),
    *(([1, None, 3], kind, "int64", [1, MISSING_INT, 3]) for kind in (pa.uint8(), pa.uint64())),
    ([True, None, False], pa.bool_(), "int64", [1, MISSING_INT, 0]),
    *(
        ([1.5, None, math.inf], kind, dtype, [1.5, math.nan, math.inf])
        for kind, dtype in (
            (pa.float16(), "float32"),
            (pa.float32(), "float32"),
            (pa.float64(), "float64"),
        )
    ),
    (DECIMAL, pa.decimal128(5, 2), "float64", [1.25, math.nan, -3.5]),
    (DECIMAL, pa.decimal256(50, 2), "float64", [1.25, math.nan, -3.5]),
    *(
        (["a", None, "é"], kind, "string", ["a", "", "é"])
        for kind in (pa.string(), pa.large_string(), pa.string_view())
    ),
    *(
        ([b"a", None, b"\xff"], kind, "bytes", [b"a", b"", b"\xff"])
        for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(1))
    ),
    *(
        ([dt.date(1970, 1, 2), None, dt.date(1969, 12, 31)], kind, "timestamp", [DAY, NONE, -DAY])
        for kind in (pa.date32(), pa.date64())
    ),
    *(
        ([1, None, -1], pa.timestamp(unit, zone), "timestamp", [scale, NONE, -scale])
        for unit, scale in (("s", 10**6), ("ms", 10**3), ("us", 1))
        for zone in (None, "-05:00")
    ),
    ([1500, None, -(10**9)], pa.timestamp("ns", "-05:00"), "timestamp", [1, NONE, -(10**6)]),
]


def read(array: Any, field: Field | None = None) -> np.ndarray:
    field = field or field_of_arrow("x", array.type)
    column = Batch.from_arrow(pa.table({"x": array}), Schema((field,)))["x"]
    assert column.dtype == field.numpy
    return column


@pytest.mark.parametrize(("values", "kind", "dtype", "expected"), TYPES, ids=lambda v: str(v)[:30])
@pytest.mark.parametrize("form", ["whole", "slice", "chunks", "dictionary", "no nulls", "empty"])
def test_a_column_of_each_type(
    values: list[Any], kind: Any, dtype: Dtype, expected: list[Any], form: str
):
    array = pa.array(values, kind)
    assert field_of_arrow("x", kind) == Field("x", dtype)
    if form == "slice":
        array, expected = pa.concat_arrays([array, array]).slice(2, 3), [expected[2], *expected[:2]]
    elif form == "chunks":
        array, expected = pa.chunked_array([array, array.slice(1)]), [*expected, *expected[1:]]
    elif form == "dictionary":
        try:
            array = array.dictionary_encode()
        except pa.ArrowNotImplementedError:
            array = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), array)
    elif form == "no nulls":
        array, expected = pa.array(values[::2], kind), expected[::2]
    elif form == "empty":
        array, expected = array.slice(0, 0), []
    np.testing.assert_array_equal(read(array), np.array(expected, Field("x", dtype).numpy))


@pytest.mark.parametrize("dtype", ["string", "bytes", "int64", "float32", "float64", "timestamp"])
def test_a_column_null_throughout_can_be_of_any_type(dtype: Dtype):
    missing = {"string": "", "bytes": b"", "int64": MISSING_INT, "timestamp": MISSING_INT}
    column = read(pa.nulls(2), Field("x", dtype))
    np.testing.assert_array_equal(column, [missing.get(dtype, np.nan)] * 2)


def test_strings_stay_a_dictionary():
    table = pa.table({"x": pa.array(["a", "b", "a", None])})
    column = Batch.from_arrow(table, Schema((Field("x", "string"),))).column("x")
    assert isinstance(column, Categorical)
    assert (column.codes.dtype, len(column.values)) == (np.int32, 3)


def test_dictionaries_of_chunks_are_unified():
    chunks = [pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", None]).dictionary_encode()]
    assert read(pa.chunked_array(chunks)).tolist() == ["a", "b", "c", ""]


def test_a_null_within_a_dictionary_is_missing():
    array = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["a", None]))
    assert read(array).tolist() == ["a", "", ""]


@pytest.mark.parametrize(
    ("values", "kind", "dtype", "expected"),
    [
        ([1, 2**53 + 1, None], pa.int64(), "float64", [1.0, float(2**53), math.nan]),
        ([1, 2**24 + 1, None], pa.int64(), "float32", [1.0, float(2**24), math.nan]),
        ([2**64 - 1], pa.uint64(), "float64", [2.0**64]),
        ([True, None], pa.bool_(), "float32", [1.0, math.nan]),
        ([2.0, math.nan, math.inf, None], pa.float64(), "int64", [2, *[MISSING_INT] * 3]),
        ([2.0, math.nan], pa.float16(), "int64", [2, MISSING_INT]),
        ([1e300, -1e300], pa.float64(), "float32", [math.inf, -math.inf]),
        ([decimal.Decimal(2**53 + 1)], pa.decimal128(20, 0), "int64", [2**53 + 1]),
    ],
)
def test_numbers_become_the_declared_type(
    values: list[Any], kind: Any, dtype: Dtype, expected: list[Any]
):
    column = read(pa.array(values, kind), Field("x", dtype))
    np.testing.assert_array_equal(column, np.array(expected, dtype))


@pytest.mark.parametrize(
    ("array", "dtype", "message"),
    [
        (pa.array([2**63], pa.uint64()), "int64", "18446|9223372036854775808"),
        (pa.array([1.5]), "int64", "1.5"),
        (pa.array([1e30]), "int64", "1000000000000000019884624838656|truncated|1e"),
        (pa.array([decimal.Decimal("1.5")]), "int64", "[Rr]escal|truncat"),
        (pa.array(["1"]), "int64", "string"),
        (pa.array([1]), "string", "int64"),
        (pa.array([1]), "timestamp", "int64"),
        (pa.array([1], pa.timestamp("us")), "int64", "timestamp"),
        (pa.array(["a"]), "bytes", "string"),
        (pa.array([2**50], pa.timestamp("s")), "timestamp", "out of bounds"),
    ],
)
def test_what_does_not_fit_the_declaration_is_refused(array: Any, dtype: Dtype, message: str):
    with pytest.raises(ValueError, match=message) as error:
        read(array, Field("x", dtype))
    assert "column 'x': found" in str(error.value)
    assert type(error.value) is ValueError


@pytest.mark.parametrize(
    "kind",
    [
        pa.time64("us"),
        pa.duration("s"),
        pa.list_(pa.int64()),
        pa.struct({"a": pa.int64()}),
        pa.list_(pa.binary(), 2),
        pa.map_(pa.string(), pa.int64()),
    ],
    ids=str,
)
def test_types_that_no_field_holds_are_refused(kind: Any):
    with pytest.raises(ValueError, match=r"column 'x': found .*allowed: strings, bytes, integers"):
        field_of_arrow("x", kind)


def test_a_column_that_is_not_there_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"unknown column 'delay'.*Did you mean 'delays'"):
        Batch.from_arrow(pa.table({"delays": [1]}), Schema((Field("delay", "int64"),)))


# -- lists of fixed size ---------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1, 2])
@pytest.mark.parametrize(("kind", "missing"), [(pa.float32(), np.nan), (pa.int64(), MISSING_INT)])
def test_lists_with_nulls_at_any_offset(start: int, kind: Any, missing: float):
    array = pa.array([[1, 2], None, [3, None], [4, 5]], pa.list_(kind, 2))
    whole = np.array([[1, 2], [missing] * 2, [3, missing], [4, 5]])
    np.testing.assert_array_equal(read(array.slice(start, 2)), whole[start : start + 2])
    np.testing.assert_array_equal(read(array.slice(start)), whole[start:])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_lists_of_text_of_any_kind_with_nulls_at_any_offset(kind: Any):
    array = pa.array([["a", None], None, ["ü", ""], ["b", "c"]], pa.list_(kind, 2))
    assert read(array).tolist() == [["a", ""], ["", ""], ["ü", ""], ["b", "c"]]
    assert read(array.slice(1, 2)).tolist() == [["", ""], ["ü", ""]]


def test_lists_of_text_that_are_codes_or_all_missing():
    codes = pa.array(["a", None, "a", "b"]).dictionary_encode()
    assert read(pa.FixedSizeListArray.from_arrays(codes, 2)).tolist() == [["a", ""], ["a", "b"]]
    nothing = pa.array([[None, None], None], pa.list_(pa.null(), 2))
    assert read(nothing).tolist() == [["", ""], ["", ""]]


def test_nested_lists_and_flat_ones_fill_a_shape():
    nested = pa.array([[[1, 2], [3, 4]], None], pa.list_(pa.list_(pa.float64(), 2), 2))
    assert field_of_arrow("x", nested.type) == Field("x", "float64", (2, 2))
    expected = [[[1, 2], [3, 4]], [[np.nan] * 2] * 2]
    np.testing.assert_array_equal(read(nested), expected)
    flat = pa.array([[1, 2, 3, 4]], pa.list_(pa.float64(), 4))
    np.testing.assert_array_equal(read(flat, Field("x", "float64", (2, 2))), expected[:1])


def test_a_list_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"allowed: int64 of shape \(3,\)"):
        read(pa.array([[1, 2]], pa.list_(pa.int64(), 2)), Field("x", "int64", (3,)))
    with pytest.raises(ValueError, match=r"of shape \(\)"):
        read(pa.array([[1, 2]], pa.list_(pa.int64(), 2)), Field("x", "int64"))


# -- there and back --------------------------------------------------------------------------------

NUMBERS = st.floats(allow_nan=True, width=32)
INTEGERS = st.integers(-(2**63) + 1, 2**63 - 1)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.text(max_size=4), NUMBERS, INTEGERS), max_size=8),
    start=st.integers(0, 3),
)
def test_a_batch_survives_arrow(rows: list[tuple[str, float, int]], start: int):
    schema = Schema((Field("s", "string"), Field("f", "float32"), Field("i", "int64")))
    batch = Batch.from_rows([dict(zip("sfi", row, strict=True)) for row in rows], schema)
    table = batch.to_arrow()
    if not rows:
        table = table.cast(pa.schema({"s": pa.string(), "f": pa.float32(), "i": pa.int64()}))
    again = Batch.from_arrow(table.slice(start), schema)
    for name in "sfi":
        np.testing.assert_array_equal(again[name], batch[name][start:])
    for record in table.slice(start).to_batches():
        np.testing.assert_array_equal(Batch.from_arrow(record, schema)["i"], batch["i"][start:])


def test_tensors_and_dictionaries_survive_arrow():
    batch = Batch(
        {
            "image": np.arange(12, dtype=np.float32).reshape(2, 3, 2),
            "word": Categorical(np.array([1, 0], np.int32), np.array(["a", "b"], dtype=object)),
        }
    )
    schema = Schema((Field("image", "float32", (3, 2)), Field("word", "string")))
    again = Batch.from_arrow(batch.to_arrow(), schema)
    np.testing.assert_array_equal(again["image"], batch["image"])
    assert again["word"].tolist() == ["b", "a"]
