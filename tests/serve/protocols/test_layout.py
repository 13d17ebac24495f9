"""A binary request whose JSON is known is read as the first one was, with its own numbers."""

import numpy as np

from drivetrain.core.schema import Field
from drivetrain.serve.protocols.layout import Layout, Layouts

FIELDS = {
    "distance": (1, Field("distance", "float32")),
    "hour": (2, Field("hour", "int64")),
    "carrier": (0, Field("carrier", "string")),
    "day": (3, Field("day", "int64")),
}


class Input:
    def __init__(self, name, **parameters):
        self.name, self.data, self.parameters = name, None, parameters


def layout(*names, rows=2, **parameters):
    inputs = [
        Input(name, binary_data_size=rows * (4 if name == "distance" else 8), **parameters)
        for name in names
    ]
    return Layout.of(inputs, FIELDS, rows, [(0, True)], None)


def test_inputs_of_one_type_that_lie_together_are_one_block():
    found = layout("hour", "day", "distance")
    assert found.blocks == (("<i8", "int64", 0, (2, 3)), ("<f4", "float32", 32, (1,)))
    assert found.size == 40


def test_columns_are_in_their_order_whatever_the_order_of_the_inputs():
    fields = {"b": (1, Field("b", "float64")), "a": (0, Field("a", "int64"))}
    inputs = [Input("b", binary_data_size=16), Input("a", binary_data_size=16)]
    found = Layout.of(inputs, fields, 2, [], None)
    data = np.array([0.5, 1.5]).tobytes() + np.array([7, 8]).tobytes()
    a, b = found.columns(memoryview(data))
    assert (a.tolist(), b.tolist()) == ([7, 8], [0.5, 1.5])
    assert (a.dtype, b.dtype) == (np.int64, np.float64)


def test_strings_and_other_parameters_are_read_each_time():
    assert layout("hour", "carrier") is None
    assert layout("hour", shared_memory_offset=8) is None


def test_few_layouts_are_kept_and_only_for_the_same_size():
    layouts, one = Layouts(), layout("hour")
    for number in range(100):
        layouts.keep(b"%d" % number, one)
    assert sum(layouts.find(b"%d" % n, memoryview(bytes(16))) is one for n in range(100)) <= 32
    assert layouts.find(b"99", memoryview(bytes(16))) is one
    assert layouts.find(b"99", memoryview(bytes(15))) is None
    layouts.keep(b"x" * 20_000, one)
    assert layouts.find(b"x" * 20_000, memoryview(bytes(16))) is None
