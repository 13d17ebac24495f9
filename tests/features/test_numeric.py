"""Numbers: constant, absent and extreme columns."""

from typing import Any

import numpy as np
import pytest

from drivetrain.core.batch import Batch
from drivetrain.core.measured import measure
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.features.compile import compile
from drivetrain.features.numeric import Clip, Log, Missing, Raw, Scale

NAN, INF = float("nan"), float("inf")
SCHEMA = Schema((Field("x", "float64"), Field("n", "int64"), Field("s", "string")))


def dense(feature: Any, train: dict[str, Any], batch: dict[str, Any]) -> list[float]:
    kinds = {"x": np.float64, "n": np.int64, "s": object}
    before, after = (
        Batch({name: np.array(values, dtype=kinds[name]) for name, values in rows.items()})
        for rows in (train, batch)
    )
    fitted = {s: measure(s, before) for s in feature.statistics()}
    found = compile([feature], SCHEMA, fitted)[0].run(after)["dense"]
    assert found.dtype == np.float32
    return found[:, 0].tolist()


def test_scale_centres_and_divides_by_the_population_s_deviation() -> None:
    found = dense(Scale("x"), {"x": [2.0, 4.0, 6.0, NAN]}, {"x": [4.0, 6.0, NAN, INF, -INF]})
    assert found == [0.0, pytest.approx(1.2247449), 0.0, 0.0, 0.0]


def test_scale_of_a_constant_or_an_absent_column_is_zero_whatever_comes() -> None:
    new = {"x": [5.0, 1e308, -1e308, NAN]}
    assert dense(Scale("x"), {"x": [5.0, 5.0]}, new) == [0.0] * 4
    assert dense(Scale("x"), {"x": [NAN, INF]}, new) == [0.0] * 4
    assert dense(Scale("x"), {"x": []}, new) == [0.0] * 4


def test_scale_of_large_integers_subtracts_before_it_narrows() -> None:
    base = 1_700_000_000_000_000
    found = dense(Scale("n"), {"n": [base - 1, base + 1]}, {"n": [base - 1, base, base + 1]})
    assert found == [-1.0, 0.0, 1.0]


def test_only_the_missing_integer_is_missing() -> None:
    values = [MISSING_INT, MISSING_INT + 1, 0, 2**63 - 1]
    assert dense(Missing("n"), {}, {"n": values}) == [1.0, 0.0, 0.0, 0.0]
    assert dense(Raw("n"), {}, {"n": values}) == [0.0, -(2.0**63), 0.0, 2.0**63]


def test_what_float32_cannot_hold_becomes_its_extreme() -> None:
    greatest = float(np.finfo(np.float32).max)
    assert dense(Raw("x"), {}, {"x": [1e300, -1e300]}) == [greatest, -greatest]
    far = dense(Scale("x"), {"x": [0.0, 1e-100]}, {"x": [1e300, -1e300]})
    assert far == [greatest, -greatest]


def test_log_keeps_the_sign_and_the_last_bits_of_tiny_numbers() -> None:
    tiny = [1e-15, 2e-15, 3e-15]
    found = dense(Log("x"), {"x": tiny}, {"x": [*tiny, -1e-15, NAN]})
    step = 1.2247449
    assert found == pytest.approx([-step, 0.0, step, -3 * step, 0.0], rel=1e-6, abs=1e-6)


def test_clip_holds_to_the_quantiles_and_fills_with_the_median() -> None:
    train = {"x": [float(i) for i in range(1001)]}
    found = dense(Clip("x"), train, {"x": [-1e308, 10.0, 500.0, 1e308, NAN]})
    assert found[0] == found[1] == pytest.approx(0.0, abs=1e-3)
    assert found[3] == 1.0
    assert found[2] == pytest.approx(0.5, abs=1e-3)
    assert found[4] == pytest.approx(0.5, abs=1e-3)


def test_clip_takes_given_bounds() -> None:
    feature = Clip("x", low=0.0, high=10.0)
    assert dense(feature, {"x": [5.0]}, {"x": [-5.0, 2.5, 20.0, NAN]}) == [0.0, 0.25, 1.0, 0.5]


def test_clip_of_a_constant_or_an_absent_column_is_zero() -> None:
    assert dense(Clip("x"), {"x": [3.0, 3.0]}, {"x": [1.0, 3.0, NAN]}) == [0.0] * 3
    assert dense(Clip("x"), {"x": [NAN]}, {"x": [1.0, -3.0, NAN]}) == [0.0] * 3


def test_missing_tells_empty_strings() -> None:
    assert dense(Missing("s"), {}, {"s": ["", " ", "a"]}) == [1.0, 0.0, 0.0]


def test_arrays_of_higher_rank_are_a_tensor_of_their_own() -> None:
    schema = Schema((Field("grid", "int64", (2, 2)), Field("path", "float32", (None, 2))))
    grid = np.array([[[1, MISSING_INT], [3, 4]]])
    graph, fields = compile([Raw("grid")], schema, {})
    assert fields.field("grid_raw").shape == (2, 2)
    assert graph.run(Batch({"grid": grid}))["grid_raw"].tolist() == [[[1.0, 0.0], [3.0, 4.0]]]
    with pytest.raises(ValueError, match="a fixed shape"):
        compile([Raw("path")], schema, {})


def test_float32_columns_are_not_widened_on_their_way() -> None:
    schema = Schema((Field("v", "float32", (3,)),))
    graph, _ = compile([Raw("v")], schema, {})
    assert "Cast" not in {node.op_type for node in graph.proto.graph.node}
    rows = np.array([[1.5, NAN, INF]], dtype=np.float32)
    assert graph.run(Batch({"v": rows}))["dense"].tolist() == [[1.5, 0.0, 0.0]]
