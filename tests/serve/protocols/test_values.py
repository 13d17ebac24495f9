import json

import numpy as np

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
