"""Events become tables value for value, whatever their types."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.serve.telemetry.record import Event, Layout, table


def layout(*inputs):
    manifest = SimpleNamespace(outputs=Schema((Field("out", "float32"),)))
    bundle = SimpleNamespace(manifest=manifest)
    return Layout(SimpleNamespace(name="m", version="1", whole=Schema(inputs), bundle=bundle))


def event(of, *inputs, outputs=None):
    outputs = outputs or [np.zeros(len(inputs[0]), np.float32)]
    size = of.size(inputs, outputs)
    return Event(len(inputs[0]), of, "stable", "r", 5, 0.001, inputs, outputs, size)


@pytest.mark.parametrize(
    ("dtype", "parts", "expected"),
    [
        ("string", (np.array(["a", "", "β"], object), np.array(["c"], object)),
         ["a", None, "β", "c"]),
        ("bytes", (np.array([b"", b"\xff"], object),), [None, b"\xff"]),
        ("int64", (np.array([1, MISSING_INT, -3]),), [1, None, -3]),
        ("float32", (np.array([0.5, np.nan], np.float32), np.array([np.inf], np.float32)),
         [0.5, None, float("inf")]),
        ("float64", (np.arange(20.0)[::2],), [float(n) for n in range(0, 20, 2)]),
        ("bool", (np.array([True, False, True] * 5),), [True, False, True] * 5),
        ("uint8", (np.array([0, 255], np.uint8),), [0, 255]),
    ],
)  # fmt: skip
def test_a_column_holds_its_values_and_null_where_one_is_missing(dtype, parts, expected):
    of = layout(Field("x", dtype))
    made = table(of, [event(of, part) for part in parts])
    made.validate(full=True)
    assert made["x"].to_pylist() == expected
    assert made["request_id"].to_pylist() == ["r"] * len(expected)


def test_rows_of_a_shape_are_flat_lists_of_a_fixed_width_or_of_their_own():
    fixed, free = Field("x", "float32", (2, 2)), Field("y", "string", (None,))
    of = layout(fixed, free)
    first = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    texts = np.array([["a", "b", "c"], ["d", "", "f"]], object)
    rest = np.full((1, 2, 2), 9, np.float32), np.array([["g"]], object)
    made = table(of, [event(of, first, texts), event(of, *rest)])
    made.validate(full=True)
    assert made["x"].to_pylist() == [[0, 1, 2, 3], [4, 5, 6, 7], [9] * 4]
    assert made["y"].to_pylist() == [["a", "b", "c"], ["d", "", "f"], ["g"]]


def test_the_size_counts_what_strings_hold_and_what_a_row_of_numbers_takes():
    of = layout(Field("name", "string"), Field("x", "float32", (10,)))
    small, large = (
        event(of, np.array([text], object), np.zeros((1, 10), np.float32)).size
        for text in ("a", "a" * 1001)
    )
    assert large - small == 1000
    none = layout(Field("name", "string"))
    assert small - event(none, np.array(["a"], object)).size == 40


def test_a_table_is_made_and_written_without_pandas():
    code = """
import io, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, pyarrow.parquet as pq
from test_record import Field, event, layout, table
of = layout(Field("name", "string"), Field("x", "float32"), Field("at", "timestamp"))
made = table(of, [event(of, np.array(["a"], object), np.zeros(1, np.float32), np.array([5]))])
pq.write_table(made, io.BytesIO(), compression="zstd")
assert "pandas" not in sys.modules
"""
    room = __file__.rpartition("/")[0]
    done = subprocess.run([sys.executable, "-c", code, room], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
