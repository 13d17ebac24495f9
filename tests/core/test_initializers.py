"""Initializers that are read without onnx are those that onnx reads."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from drivetrain.core.initializers import initializers

NUMBERS = (
    "float32",
    "float64",
    "float16",
    "bool",
    *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)),
)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
VALUES = st.sampled_from(NUMBERS).flatmap(lambda dtype: arrays.arrays(dtype, SHAPES))
TEXTS = arrays.arrays(object, SHAPES, elements=st.text(st.characters(exclude_categories=["Cs"])))


def model(*tensors: TensorProto, live: tuple[TensorProto, ...] = ()) -> bytes:
    """A graph of nodes and ends around some initializers."""
    node = helper.make_node("Identity", ["x"], ["y"], name="between")
    ends = [helper.make_tensor_value_info(name, 1, ["rows", 3]) for name in ("x", "y")]
    more = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in live]
    graph = helper.make_graph([node], "g", [ends[0], *more], ends[1:], [*tensors, *live])
    return helper.make_model(graph).SerializeToString()


def check(tensor: TensorProto) -> None:
    read = onnx.load_model_from_string(model(tensor)).graph.initializer[0]
    due = numpy_helper.to_array(read)
    found = initializers(model(tensor), ["a"]).arrays["a"]
    assert found.dtype == due.dtype
    assert found.shape == due.shape
    assert (
        found.tobytes() == due.tobytes() if due.dtype != object else found.tolist() == due.tolist()
    )
    assert found.flags.writeable


@given(VALUES)
def test_raw_bytes_are_read_as_onnx_reads_them(values: Any) -> None:
    check(numpy_helper.from_array(values, "a"))


@given(VALUES)
def test_typed_fields_are_read_as_onnx_reads_them(values: Any) -> None:
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    if values.dtype == np.float16:
        values = values.view(np.uint16) if values.size else values
        tensor = TensorProto(name="a", data_type=kind, dims=values.shape)
        tensor.int32_data.extend(values.ravel().astype(int).tolist())
        check(tensor)
        return
    check(helper.make_tensor("a", kind, values.shape, values.ravel().tolist()))


@given(TEXTS)
def test_texts_are_read_as_onnx_reads_them(values: Any) -> None:
    check(helper.make_tensor("a", TensorProto.STRING, values.shape, values.ravel().tolist()))


def test_names_are_found_behind_the_prefix_of_a_join_and_live_ones_are_told() -> None:
    one = numpy_helper.from_array(np.arange(3), "join1/join2/a")
    other = numpy_helper.from_array(np.arange(4), "b")
    near = numpy_helper.from_array(np.arange(5), "not_a")
    found = initializers(model(one, near, live=(other,)), ["a", "b", "c"])
    assert {name: len(array) for name, array in found.arrays.items()} == {"a": 3, "b": 4}
    assert found.names == {"a": "join1/join2/a", "b": "b"}
    assert found.live == {"b"}


def test_fields_may_come_in_any_order_and_in_pieces() -> None:
    tensor = numpy_helper.from_array(np.arange(6.0).reshape(2, 3), "a")
    whole = onnx.load_model_from_string(model(tensor))
    name = onnx.ModelProto(graph=onnx.GraphProto(name="later")).SerializeToString()
    alone = TensorProto(name="a").SerializeToString()
    rest = tensor.SerializeToString().replace(alone, b"")
    swapped = b"\x2a" + bytes([len(rest) + len(alone)]) + alone + rest
    graph = b"\x3a" + bytes([len(swapped)]) + swapped
    del whole.graph.initializer[:]
    found = initializers(name + whole.SerializeToString() + graph, ["a"]).arrays["a"]
    np.testing.assert_array_equal(found, np.arange(6.0).reshape(2, 3))


def test_numbers_that_are_not_packed_are_read_too() -> None:
    dims, kind, name = b"\x08\x02", b"\x10\x07", b"\x42\x01a"
    tensor = dims + kind + name + b"\x38\x05" + b"\x38" + b"\xff" * 9 + b"\x01"
    data = b"\x3a" + bytes([len(tensor) + 2]) + b"\x2a" + bytes([len(tensor)]) + tensor
    assert initializers(data, ["a"]).arrays["a"].tolist() == [5, -1]


@pytest.mark.parametrize("seed", range(20))
def test_cut_bytes_are_refused(seed: int) -> None:
    data = model(numpy_helper.from_array(np.arange(50), "a"))
    cut = int(np.random.default_rng(seed).integers(1, len(data)))
    with pytest.raises(ValueError, match="an ONNX model: found"):
        initializers(data[:cut] + b"\x3a\xff", ["a"])


def test_what_cannot_be_read_is_refused_by_name() -> None:
    outside = numpy_helper.from_array(np.arange(3), "a")
    outside.data_location = TensorProto.EXTERNAL
    with pytest.raises(ValueError, match="initializer 'a': found 'data in another file'"):
        initializers(model(outside), ["a"])
    short = numpy_helper.from_array(np.arange(3), "a")
    short.dims[0] = 4
    with pytest.raises(ValueError, match="initializer 'a': found '3 values'"):
        initializers(model(short), ["a"])
    complex_ = numpy_helper.from_array(np.zeros(2, np.complex64), "a")
    with pytest.raises(ValueError, match="initializer 'a': found 'type 14'"):
        initializers(model(complex_), ["a"])
    assert not initializers(model(outside), ["b"]).arrays, "what is not asked for is not read"
