"""TensorFlow's tensors to columns, in every form and type, and predictions to tensors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.core.schema import Field
from drivetrain.serve.protocols.grpc_tfserving import version_number
from drivetrain.serve.protocols.messages_tfs import messages
from drivetrain.serve.protocols.tfs_tensors import DTYPES, TensorWriter, column_of_tensor

VALUES = {
    "float32": "float_val",
    "float64": "double_val",
    "int8": "int_val",
    "int16": "int_val",
    "int32": "int_val",
    "uint8": "int_val",
    "uint16": "int_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "float16": "half_val",
}


def tensor(dtype, values, shape=None, content=False):
    message = messages()["Tensor"](dtype=DTYPES[dtype])
    array = None if dtype in ("string", "bytes") else np.asarray(values, dtype)
    for size in (len(values),) if shape is None else shape:
        message.tensor_shape.dim.add(size=size)
    if array is None:
        message.string_val.extend(values)
    elif content:
        message.tensor_content = array.astype(array.dtype.newbyteorder("<")).tobytes()
    else:
        bits = array.view(np.uint16) if dtype == "float16" else array
        getattr(message, VALUES[dtype]).extend(bits.reshape(-1).tolist())
    return message


def column(field, message):
    values, rows = column_of_tensor(field, message)
    assert len(values) == rows
    return values.tolist() if isinstance(values, np.ndarray) else values


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20), st.booleans())
def test_integers_come_as_they_are(values, content):
    assert column(Field("n", "int64"), tensor("int64", values, content=content)) == values


@given(st.lists(st.floats(width=32), min_size=1, max_size=20), st.booleans())
def test_floats_come_bit_for_bit_and_wider_without_loss(values, content):
    message = tensor("float32", values, content=content)
    for dtype in ("float32", "float64"):
        assert repr(column(Field("x", dtype), message)) == repr(np.float32(values).tolist())


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        *((name, "int64") for name in ("int8", "int16", "int32", "uint8", "uint16", "uint32")),
        *((name, "float32") for name in ("int8", "int16", "uint8", "uint16", "float16", "bool")),
        *((name, "float64") for name in ("int32", "uint32", "float32", "float16")),
        ("bool", "int64"),
        ("int64", "timestamp"),
    ],
)
def test_a_narrower_type_is_taken_where_nothing_is_lost(found, wanted, content):
    values = [0, 1, 1, 0]
    taken = column(Field("x", wanted), tensor(found, values, content=content))
    assert taken == values
    assert [type(value) for value in taken] == [float if "float" in wanted else int] * 4


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("float64", "float32"),
        ("int64", "float64"),
        ("int32", "float32"),
        ("uint64", "int64"),
        ("float32", "int64"),
        ("string", "float32"),
        ("int64", "string"),
    ],
)
def test_a_type_that_would_lose_something_is_refused_by_name(found, wanted):
    message = tensor(found, [b"1"] if found == "string" else [1])
    with pytest.raises(ValueError, match="input 'x', dtype: found 'DT_"):
        column_of_tensor(Field("x", wanted), message)


def test_texts_are_utf8_and_bytes_are_anything():
    assert column(Field("t", "string"), tensor("string", ["β".encode(), b""])) == ["β", ""]
    assert column(Field("t", "bytes"), tensor("bytes", [b"\xff", b""])) == [b"\xff", b""]
    with pytest.raises(ValueError, match=r"input 't', string_val: found .* allowed: UTF-8"):
        column_of_tensor(Field("t", "string"), tensor("string", [b"\xff"]))


def test_the_last_value_stands_for_those_that_are_missing():
    field = Field("x", "float32")
    assert column(field, tensor("float32", [1.0, 2.0], (4,))) == [1.0, 2.0, 2.0, 2.0]
    assert column(Field("t", "string"), tensor("string", [b"a"], (3, 1))) == ["a", "a", "a"]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (tensor("float32", [1.0], (1 << 40,)), "found '1 values', allowed: 1099511627776"),
        (tensor("float32", [1.0, 2.0, 3.0], (2,)), "found '3 values', allowed: 2"),
        (tensor("float32", [], (2,)), "found '0 values', allowed: 2"),
        (tensor("float32", [1.0], ()), r"shape: found \[\]"),
        (tensor("float32", [1.0], (0,)), r"shape: found \[0\]"),
        (tensor("float32", [1.0], (-1,)), r"shape: found \[-1\]"),
        (tensor("float32", [1.0, 2.0], (1, 2)), r"shape: found \[1, 2\]"),
        (tensor("float32", [1.0, 2.0], (3,), content=True), "found '8 bytes', allowed: 12"),
        (messages()["Tensor"](dtype=14, tensor_shape={"dim": [{"size": 1}]}), "found 'type 14'"),
        (messages()["Tensor"](dtype=1, tensor_shape={"unknown_rank": True}), "an unknown rank"),
    ],
)
def test_what_is_wrong_is_named(message, text):
    with pytest.raises(ValueError, match=text):
        column_of_tensor(Field("x", "float32"), message)


def test_a_value_beyond_its_type_is_refused():
    message = tensor("int64", [1])
    message.dtype = DTYPES["int8"]
    message.int_val.append(300)
    with pytest.raises(ValueError, match="input 'x', int_val: found 'a number too large'"):
        column_of_tensor(Field("x", "int64"), message)


def test_a_shaped_column_keeps_its_shape():
    field = Field("x", "float32", (2, None))
    values, rows = column_of_tensor(field, tensor("float32", range(12), (2, 2, 3)))
    assert (values.shape, rows) == ((2, 2, 3), 2)


@pytest.mark.parametrize("dtype", [*VALUES, "string", "bytes"])
def test_an_output_is_written_in_the_field_of_its_type(dtype):
    if dtype in ("string", "bytes"):
        array = np.array([["a", "β"]] if dtype == "string" else [[b"a", b"\xff"]], np.object_)
    else:
        array = np.array([[0, 1]], dtype)
    data = TensorWriter(Field("x", dtype, (2,))).write(array)
    message = messages()["Tensor"].FromString(data)
    assert message.dtype == DTYPES[dtype]
    assert [dim.size for dim in message.tensor_shape.dim] == [1, 2]
    if dtype in ("string", "bytes"):
        texts = [v.encode() if isinstance(v, str) else v for v in array[0]]
        assert list(message.string_val) == texts
    else:
        bits = array.view(np.uint16) if dtype == "float16" else array
        assert list(getattr(message, VALUES[dtype])) == bits[0].tolist()


def test_a_version_is_one_number_below_2_to_the_48():
    assert version_number("000000000001") == 1
    assert version_number("ffffffffffff") == 2**48 - 1
