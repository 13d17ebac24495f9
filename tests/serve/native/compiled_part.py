"""What the tests of the compiled part share: its columns, and where it was not built."""

import pytest

from drivetrain.core.schema import Field, Schema
from drivetrain.serve import native

compiled = pytest.mark.skipif(
    native.compiled is None, reason="NOT TESTED: the compiled part was not built here"
)

INPUTS = Schema(
    (
        Field("x", "float32"),
        Field("n", "int64"),
        Field("größe", "float64"),
        Field("at", "timestamp"),
    )
)

OUTPUTS = Schema((Field("sum", "float32"), Field("pair", "float32", (2,)), Field("code", "int64")))
