"""What quantization promises: the same ends, near predictions, fewer bytes, repeatable."""

from collections.abc import Callable

import numpy as np
import pytest

from drivetrain.compress.optimize import Optimize
from drivetrain.compress.quantize import Quantize
from drivetrain.core.batch import Batch
from drivetrain.core.graph import Graph

Rows = Callable[..., Batch]


def operators(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.proto.graph.node]


@pytest.fixture(scope="module")
def small(tabular: Graph, rows: Rows) -> Graph:
    return Quantize("int8", calibration_rows=512)(tabular, lambda: [rows(600)])


def test_inputs_and_outputs_stay_and_none_is_dropped(tabular: Graph, small: Graph):
    assert small.inputs == tabular.inputs
    assert "unread" in small.inputs
    assert small.outputs == tabular.outputs


def test_predictions_are_near_on_rows_that_calibration_never_saw(
    tabular: Graph, small: Graph, rows: Rows
):
    batch = rows(2000, seed=7)
    exact, near = (g.run(batch)["probability"] for g in (tabular, small))
    assert np.abs(exact - near).mean() < 0.004
    assert np.abs(exact - near).max() < 0.02
    assert np.corrcoef(exact, near)[0, 1] > 0.999


def test_predictions_are_not_rounded_to_eight_bits(small: Graph, rows: Rows):
    assert len(np.unique(small.run(rows(2000, seed=7))["probability"])) > 2 * 256


def test_strings_and_nulls_go_in_as_before(tabular: Graph, small: Graph):
    schema = tabular.inputs
    written = [
        {"amount": None, "kind": None, "unread": None},
        {"amount": 0.0, "kind": "never seen", "unread": 1},
        {"amount": float("nan"), "kind": "", "unread": 0},
    ]
    near = small.run(Batch.from_rows(written, schema))["probability"]
    exact = tabular.run(Batch.from_rows(written, schema))["probability"]
    assert np.unique(near).size == 1
    assert np.allclose(near, exact, atol=0.01)


def test_only_the_model_is_quantized(tabular: Graph, small: Graph):
    kept = ("LabelEncoder", "IsNaN", "Where", "Gather", "Concat")
    for operator in kept:
        assert operators(small).count(operator) == operators(tabular).count(operator)
    first = next(n for n in small.proto.graph.node if n.op_type == "QuantizeLinear")
    assert first.input[0] == "dense"


def test_weights_are_a_quarter(convolutional: Graph, images: Rows):
    small = Quantize()(convolutional, lambda: [images(64)])
    weights = sum(t.ByteSize() for t in small.proto.graph.initializer if len(t.dims) == 4)
    before = sum(t.ByteSize() for t in convolutional.proto.graph.initializer if len(t.dims) == 4)
    assert weights < 0.3 * before


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_convolutional_net_stays_near(convolutional: Graph, images: Rows, per_channel: bool):
    small = Quantize(per_channel=per_channel)(convolutional, lambda: [images(128)])
    assert operators(small).count("Conv") == 3
    assert "BatchNormalization" not in operators(small)
    batch = images(64, seed=5)
    exact, near = (g.run(batch)["logits"] for g in (convolutional, small))
    assert np.abs(exact - near).max() < 0.05 * np.abs(exact).max()
    assert (small.inputs, small.outputs) == (convolutional.inputs, convolutional.outputs)


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "entropy"])
def test_the_same_calibration_gives_the_same_bytes_and_prints_nothing(
    tabular: Graph, rows: Rows, ranges: str, capsys: pytest.CaptureFixture[str]
):
    make = Quantize(calibration_rows=300, ranges=ranges)
    first, second = (make(tabular, lambda: [rows(400)]) for _ in range(2))
    assert first.digest == second.digest
    assert capsys.readouterr().out == ""


def test_calibration_depends_on_rows_and_not_on_how_they_are_cut(tabular: Graph, rows: Rows):
    batch = rows(300)
    parts = [batch.slice(0, 1), batch.slice(1, 1), batch.slice(1, 290), batch.slice(290, 300)]
    whole, cut = (Quantize()(tabular, lambda b=b: b) for b in ([batch], parts))
    assert whole.digest == cut.digest


def test_no_more_rows_are_read_than_asked_for(tabular: Graph, rows: Rows):
    read: list[int] = []

    def calibration():
        for seed in range(10):
            read.append(seed)
            yield rows(100, seed)

    limited = Quantize(calibration_rows=150)(tabular, calibration)
    assert read == [0, 1]
    exact = [rows(100, 0), rows(100, 1).slice(0, 50)]
    assert limited.digest == Quantize()(tabular, lambda: exact).digest


def test_excluded_nodes_stay_float(tabular: Graph, rows: Rows):
    make = Quantize(exclude=("*layer0*",))
    # the first layer's bias is fused, which keeps the name of the product
    graph = make(tabular, lambda: [rows(100)])
    quantized = [n for n in graph.proto.graph.node if n.op_type == "QuantizeLinear"]
    assert quantized
    assert all(node.input[0] != "dense" for node in quantized)


def test_the_result_can_be_optimized_and_loaded(tabular: Graph, small: Graph, rows: Rows):
    fused = Optimize()(small, list)
    batch = rows(50)
    answers = [g.run(batch)["probability"] for g in (small, fused)]
    assert np.allclose(*answers, atol=1e-6)
    assert fused.inputs == tabular.inputs


# -- mistakes --------------------------------------------------------------------------------------


def test_a_graph_with_nothing_to_quantize_names_its_operators(tabular: Graph, rows: Rows):
    with pytest.raises(ValueError, match=r"found no Conv with .*LabelEncoder"):
        Quantize(operators=("Conv",))(tabular, lambda: [rows(10)])


def test_a_graph_that_was_fused_before_says_so(convolutional: Graph, images: Rows):
    fused = Optimize("extended")(convolutional, list)
    with pytest.raises(ValueError, match=r"FusedConv.*Optimize\('extended'\)"):
        Quantize()(fused, lambda: [images(10)])


@pytest.mark.parametrize("rows_there", [[], [0]])
def test_no_calibration_rows_is_an_error(tabular: Graph, rows: Rows, rows_there: list[int]):
    with pytest.raises(ValueError, match="0 calibration rows"):
        Quantize()(tabular, lambda: [rows(n) for n in rows_there])


def test_a_column_that_calibration_lacks_is_named(tabular: Graph, rows: Rows):
    batch = rows(10).select(["kind", "unread"])
    with pytest.raises(ValueError, match="unknown column 'amount'"):
        Quantize()(tabular, lambda: [batch])


def test_a_range_that_is_no_number_is_refused(convolutional: Graph, images: Rows):
    batch = images(10)
    batch["image"][3, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match=r"'image' is NaN or infinite on calibration rows"):
        Quantize()(convolutional, lambda: [batch])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "itn8"}, "unknown scheme 'itn8'.*Did you mean 'int8'"),
        ({"ranges": "minmaxx"}, "Did you mean 'minmax'"),
        ({"operators": ("Gem",)}, "Did you mean 'Gemm'"),
        ({"operators": "Gemm"}, "a tuple of operators"),
        ({"calibration_rows": 0}, "1 or more"),
    ],
)
def test_a_mistyped_option_suggests_the_nearest(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Quantize(**options)


@pytest.fixture(scope="module")
def dynamic(tabular: Graph) -> Graph:
    return Quantize("int8-dynamic")(tabular, list)


def test_dynamic_ranges_need_no_rows_and_stay_as_near_as_learnt_ones(
    tabular: Graph, dynamic: Graph, small: Graph, rows: Rows
):
    assert (dynamic.inputs, dynamic.outputs) == (tabular.inputs, tabular.outputs)
    assert "DynamicQuantizeLinear" in operators(dynamic)
    assert len(dynamic.model) < 0.6 * len(tabular.model)
    batch = rows(2000, seed=7)
    exact, near, learnt = (g.run(batch)["probability"] for g in (tabular, dynamic, small))
    assert np.abs(exact - near).max() < 0.02
    assert np.abs(exact - near).mean() < 1.5 * np.abs(exact - learnt).mean()


def test_dynamic_products_with_a_bias_are_quantized_and_excluded_by_their_name(
    tabular: Graph, rows: Rows
):
    fused = Optimize("basic")(tabular, list)  # where MatMul and Add have become Gemm
    names = [n.name for n in fused.proto.graph.node if n.op_type in ("Gemm", "MatMul")]
    whole, part = (
        Quantize("int8-dynamic", exclude=exclude)(fused, list) for exclude in ((), (names[0],))
    )
    count = [operators(graph).count("MatMulInteger") for graph in (whole, part)]
    assert count == [len(names), len(names) - 1]
    assert (
        np.abs(whole.run(rows(50))["probability"] - fused.run(rows(50))["probability"]).max() < 0.02
    )


def test_dynamic_leaves_convolutions_float_and_says_so_where_there_is_nothing_else(
    convolutional: Graph,
):
    with pytest.raises(ValueError, match=r"found no MatMul or Gemm with .*Conv"):
        Quantize("int8-dynamic")(convolutional, list)
    with pytest.raises(ValueError, match="learns no ranges"):
        Quantize("int8-dynamic", ranges="entropy")
