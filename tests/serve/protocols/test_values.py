"""Values as JSON: what is missing is null, and rows at once are as value by value."""

import json

import numpy as np
import pytest

from drivetrain.core.batch import Array
from drivetrain.core.schema import MISSING_INT
from drivetrain.serve.protocols.values import nested, only, texts


def test_a_missing_integer_is_null_as_a_missing_float_is() -> None:
    items = np.array([[5, MISSING_INT], [-(2**63) + 1, 0]])
    assert [json.loads(row) for row in nested(items)] == [[5, None], [-(2**63) + 1, 0]]
    assert texts(items) == ["5", "null", "-9223372036854775807", "0"]
    assert only(items[1:, 0]) == "-9223372036854775807"
    assert only(np.array([MISSING_INT])) == "null"
    scores = np.array([[0.5, np.nan]], np.float32)
    assert [json.loads(row) for row in nested(scores)] == [[0.5, None]]


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.arange(6) - 3, id="int64"),
        pytest.param(np.array([1, MISSING_INT, 3, 4, 5, 6]), id="int64 missing"),
        pytest.param(np.array(["a", "", "ü\n", '"', "\\", "\x01😀"], object), id="text"),
        pytest.param(np.array(["a", "", "ü", '"', "\\", "b"]), id="text of numpy"),
        pytest.param(np.array([b"a", b"\xff", "b", "", "c", "d"], object), id="bytes among text"),
        pytest.param(np.array([0.5, -0.0, np.inf, np.nan, 0.1, 3.0], np.float32), id="float32"),
        pytest.param(np.array([0.5, -0.0, np.inf, 1e300, 0.1, 3.0]), id="float64"),
        pytest.param(np.array([True, False] * 3), id="bool"),
    ],
)
@pytest.mark.parametrize("shape", [(6, 1), (2, 3), (1, 6), (2, 3, 1), (1, 3, 2)])
def test_rows_that_are_written_at_once_are_as_value_by_value(array: Array, shape) -> None:
    one_by_one = texts(array)
    found = nested(array.reshape(shape))
    width = 6 // shape[0]
    plain = [row.replace("[", "").replace("]", "") for row in found]
    assert plain == [",".join(one_by_one[n : n + width]) for n in range(0, 6, width)]
    assert np.shape([json.loads(row) for row in found]) == shape


def test_rows_without_values_are_empty_lists() -> None:
    for kind in (np.int64, np.float32, object, np.str_):
        assert nested(np.empty((2, 0), kind)) == ["[]", "[]"]
        assert nested(np.empty((0, 2), kind)) == []
