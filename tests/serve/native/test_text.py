"""Floats have the text that Python gives them, written one by one or in rows."""

import math
import struct

import numpy as np
import pytest
from compiled_part import compiled
from hypothesis import example, given
from hypothesis import strategies as st

from drivetrain.serve import native
from drivetrain.serve.protocols import values


@compiled
@given(st.floats(width=32) | st.integers(0, 2**32 - 1).map(lambda n: struct.pack("I", n)))
@example(-0.0)
@example(math.inf)
@example(math.nan)
@example(16777216.0)
@example(1e39)
def test_a_float_has_the_same_text(value):
    if isinstance(value, bytes):
        (value,) = struct.unpack("f", value)
    assert native.compiled.float32_text(value) == values.float32_in_python(value)


@compiled
@given(
    st.floats(2.0**-17, 2.0**24, width=32)
    | st.integers(-(2**24), 2**24).map(lambda n: n * 2.0**-30),
    st.booleans(),
)
@example(2.0**-13, True)  # halfway between two texts of nine digits
@example(float(np.nextafter(np.float32(1e-4), np.float32(0))), False)
@example(float(np.nextafter(np.float32(1e6), np.float32(0))), False)
@example(float(np.nextafter(np.float32(10), np.float32(0))), False)
def test_a_float_of_a_usual_size_has_the_same_text(value, below):
    value = float(np.float32(-value if below else value))
    assert native.compiled.float32_text(value) == values.float32_in_python(value)


@compiled
@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=6, max_size=6),
    st.sampled_from([1, 2, 3, 6]),
)
@example([0, 1 << 31, 0x7F800000, 0xFFC00000, 0x3F800000, 1], 2)
def test_rows_of_floats_have_the_texts_of_their_values(bits, width):
    matrix = np.array(bits, np.uint32).view(np.float32).reshape(-1, width)
    rows = [[values.float32_in_python(value) for value in row] for row in matrix.tolist()]
    assert values.nested(matrix) == [f"[{','.join(row)}]" for row in rows]
    assert values.nested(matrix[:, ::-1]) == [f"[{','.join(row[::-1])}]" for row in rows]


@compiled
@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=4),
    st.binary(max_size=9),
    st.binary(max_size=9),
)
def test_floats_between_two_texts_have_their_texts(bits, before, behind):
    array = np.array(bits, np.uint32).view(np.float32)
    found = native.compiled.floats_between(array, before, behind)
    assert found == values.between_in_python(array, before, behind)
    assert len(found) == len(bits)


@compiled
def test_what_is_put_between_two_texts_is_whole_floats():
    with pytest.raises(ValueError, match="float32"):
        native.compiled.floats_between(np.zeros(6, np.uint8), b"", b"")
    with pytest.raises(TypeError):
        native.compiled.floats_between(np.zeros(1, np.float32), "", b"")
    with pytest.raises(TypeError):
        native.compiled.floats_between(np.zeros(1, np.float32))


@compiled
@pytest.mark.parametrize("width", [-1, 0, 2, 2**62])
def test_rows_that_do_not_fill_the_memory_are_refused(width):
    with pytest.raises(ValueError, match="do not fill"):
        native.compiled.float32_rows(np.zeros(3, np.float32), width)


@compiled
@pytest.mark.parametrize("value", ["1", None])
def test_what_is_no_number_is_refused_as_python_refuses_it(value):
    with pytest.raises(TypeError):
        values.float32_in_python(value)
    with pytest.raises(TypeError):
        native.compiled.float32_text(value)
