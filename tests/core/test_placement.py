"""Where a graph runs: cut, parity, refusal, choice."""

import math
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from drivetrain.core import openvino, placement
from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.cut import cut
from drivetrain.core.graph import IR_VERSION, ML_OPSET, OPSET, Graph, Session
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.sketch import Counts, MomentsValue
from drivetrain.core.statistic import Moments, TopK

WORDS = ("red", "green", "blue")
FEATURES = FeatureSchema(
    (
        FeatureField(name="amount", kind="dense", columns=("amount",)),
        FeatureField(name="colour", kind="index", columns=("colour",), cardinality=4),
    )
)
FITTED = {
    Moments("amount"): MomentsValue(100, 3, 50.0, 90_000.0, 1.0, 200.0),
    TopK("colour"): Counts((("red", 60), ("green", 30), ("blue", 10))),
}
INPUTS = Schema((Field("amount", "float64"), Field("colour", "string")))
OUTPUTS = Schema((Field("score", "float32", (8,)), Field("place", "int64")))


def graph_of(nodes, inputs, outputs, weights) -> Graph:
    info = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node(kind, takes, [gives], **rest) for kind, takes, gives, rest in nodes],
        "made",
        [info(name, kind, shape) for name, kind, shape in inputs],
        [info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return Graph.from_proto(helper.make_model(made, ir_version=IR_VERSION, opset_imports=opsets))


def feature_graph() -> Graph:
    """``dense`` of ``amount`` and ``index`` of ``colour``, as compiled features are."""
    encode = {"domain": "ai.onnx.ml", "keys_strings": list(WORDS), "values_int64s": [1, 2, 3]}
    return graph_of(
        [
            ("IsNaN", ["amount"], "absent", {}),
            ("Where", ["absent", "mean", "amount"], "known", {}),
            ("Sub", ["known", "mean"], "centred", {}),
            ("Cast", ["centred"], "single", {"to": TensorProto.FLOAT}),
            ("Unsqueeze", ["single", "one"], "dense", {}),
            ("LabelEncoder", ["colour"], "code", {**encode, "default_int64": 0}),
            ("Unsqueeze", ["code", "one"], "index", {}),
        ],
        [("amount", TensorProto.DOUBLE, ["rows"]), ("colour", TensorProto.STRING, ["rows"])],
        [("dense", TensorProto.FLOAT, ["rows", 1]), ("index", TensorProto.INT64, ["rows", 1])],
        {"mean": np.array(50.0), "one": np.array([1])},
    )


def model_graph() -> Graph:
    random = np.random.default_rng(0)
    return graph_of(
        [
            ("Gather", ["table", "index"], "looked_up", {}),
            ("Flatten", ["looked_up"], "embedded", {}),
            ("Concat", ["embedded", "dense"], "joined", {"axis": 1}),
            ("Gemm", ["joined", "weight"], "score", {}),
            ("ArgMax", ["score"], "place", {"axis": 1, "keepdims": 0}),
        ],
        [("dense", TensorProto.FLOAT, ["rows", 1]), ("index", TensorProto.INT64, ["rows", 1])],
        [("score", TensorProto.FLOAT, ["rows", 8]), ("place", TensorProto.INT64, ["rows"])],
        {
            "table": random.normal(size=(4, 16)).astype(np.float32),
            "weight": random.normal(size=(17, 8)).astype(np.float32),
        },
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    manifest = Manifest(name="made", inputs=INPUTS, outputs=OUTPUTS, features=FEATURES)
    path = tmp_path_factory.mktemp("placed") / "bundle"
    return Bundle.write(path, feature_graph().join(model_graph()), manifest, FITTED)


def rows(count: int):
    random = np.random.default_rng(count)
    amount = np.where(random.random(count) < 0.2, np.nan, random.normal(50, 30, count))
    colour = random.choice(np.array([*WORDS, "grey"], object), count)
    return {"amount": amount, "colour": colour}


def bf16() -> bool:
    core = openvino._core()
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


# -- cut -------------------------------------------------------------------------------------------


def test_halves_give_together_the_bits_of_the_whole(bundle):
    halves = cut(bundle.graph.proto, FEATURES.tensors)
    assert halves.between == ("dense", "index")
    assert halves.front_inputs == ("amount", "colour")
    front, back = Session(halves.front, 1), Session(halves.back, 1)
    names = list(OUTPUTS.names)
    for count in (1, 5, 64):
        taken = front.raw(rows(count), halves.between)
        parts = back.raw(dict(zip(halves.between, taken, strict=True)), names)
        whole = Session(bundle.graph.model, 1).raw(rows(count), names)
        assert [a.tobytes() for a in parts] == [a.tobytes() for a in whole]


def test_the_front_has_no_weights_of_the_model_and_the_back_no_strings(bundle):
    halves = cut(bundle.graph.proto, FEATURES.tensors)
    weights = {t.name for t in Graph(halves.front).proto.graph.initializer}
    assert not any("table" in name or "weight" in name for name in weights)
    back = Graph(halves.back).proto
    assert {node.domain for node in back.graph.node} == {""}
    assert [entry.domain for entry in back.opset_import] == [""]


def test_a_graph_without_feature_tensors_is_all_back():
    halves = cut(model_graph().proto, Schema(()))
    assert halves.front is None
    assert halves.back_inputs == ("dense", "index")


def test_a_column_that_the_model_takes_itself_goes_to_the_back():
    joined = feature_graph().join(
        graph_of(
            [("Mul", ["dense", "price"], "cost", {})],
            [("dense", TensorProto.FLOAT, ["rows", 1]), ("price", TensorProto.FLOAT, ["rows", 1])],
            [("cost", TensorProto.FLOAT, ["rows", 1])],
            {},
        )
    )
    halves = cut(joined.proto, FEATURES.tensors)
    assert halves.between == ("dense",)
    assert halves.front_inputs == ("amount",)
    assert halves.back_inputs == ("dense", "price")


def test_what_a_graph_inside_a_node_takes_comes_along():
    branch = {
        name: helper.make_graph(
            [helper.make_node(kind, ["dense", "half"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 1])],
        )
        for name, kind in (("added", "Add"), ("taken", "Sub"))
    }
    graph = graph_of(
        [
            ("Neg", ["amount"], "dense", {}),
            (
                "If",
                ["yes"],
                "out",
                {"then_branch": branch["added"], "else_branch": branch["taken"]},
            ),
        ],
        [("amount", TensorProto.FLOAT, ["rows", 1])],
        [("out", TensorProto.FLOAT, ["rows", 1])],
        {"yes": np.array(True), "half": np.array([0.5], np.float32)},
    )
    halves = cut(graph.proto, FEATURES.tensors)
    dense = np.array([[1.0], [2.0]], np.float32)
    assert Session(halves.back, 1).raw({"dense": dense}, ["out"])[0].tolist() == [[1.5], [2.5]]


# -- OpenVINO --------------------------------------------------------------------------------------


def test_openvino_computes_the_model_and_leaves_the_features_as_they_are(bundle):
    session = placement.load_checked("openvino", bundle)
    plain = placement.load("cpu", bundle)
    assert session.placement == "openvino"
    assert session.inputs == plain.inputs
    assert session.input_schema == plain.input_schema
    assert session.outputs == plain.outputs
    names = list(OUTPUTS.names)
    for count in (1, 64, 3):
        found, expected = session.raw(rows(count), names), plain.raw(rows(count), names)
        assert placement.difference(found, expected) < 1e-5
        assert [a.dtype for a in found] == [a.dtype for a in expected]


def test_an_answer_of_openvino_stays_when_the_next_one_comes(bundle):
    session = placement.load("openvino", bundle)
    first = session.raw(rows(4), ["score"])[0]
    before = first.copy()
    session.raw(rows(5), ["score"])
    assert first.tobytes() == before.tobytes()


def test_bf16_is_what_was_asked_for_or_refused(bundle):
    if bf16():
        session = placement.load_checked("openvino-bf16", bundle)
        plain = placement.load("cpu", bundle)
        apart = placement.difference(
            session.raw(rows(64), ["score"]), plain.raw(rows(64), ["score"])
        )
        assert 1e-6 < apart < 5e-2
    else:
        with pytest.raises(ValueError, match="this processor computes"):
            placement.load_checked("openvino-bf16", bundle)


def test_what_openvino_cannot_run_is_refused_with_its_reason(tmp_path):
    inputs = Schema((Field("amount", "float64"), Field("colour", "string")))
    manifest = Manifest(name="strings", inputs=inputs, outputs=FEATURES.tensors)
    strings = Bundle.write(tmp_path / "strings", feature_graph(), manifest, {})
    with pytest.raises(ValueError, match="found 'openvino', which does not take this graph"):
        placement.load("openvino", strings)


def test_openvino_is_imported_without_its_telemetry():
    script = (
        "import sys; from drivetrain.core.openvino import _openvino; _openvino().Core(); "
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_signals_come_through_when_sessions_of_openvino_have_gone(bundle):
    script = (
        "import os, signal, sys; from drivetrain.core import placement; "
        "from drivetrain.core.bundle import Bundle; bundle = Bundle.open(sys.argv[1]); "
        "signal.signal(signal.SIGTERM, lambda *_: print('heard')); "
        "first, second = (placement.load('openvino', bundle) for _ in range(2)); "
        "del first; del second; os.kill(os.getpid(), signal.SIGTERM)"
    )
    command = [sys.executable, "-c", script, str(bundle.path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_without_openvino_the_error_says_how_to_install_it(bundle, monkeypatch):
    monkeypatch.setattr(openvino, "_core", openvino._core.__wrapped__)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"drivetrain\[openvino\]"):
        placement.load("openvino", bundle)


# -- execution providers ---------------------------------------------------------------------------


def test_a_provider_that_is_not_here_is_an_error_that_says_what_is(bundle):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ValueError, match=r"found 'cuda', allowed here: auto, cpu.*has .*CPU"):
        placement.load("cuda", bundle)


def test_a_provider_that_takes_nothing_is_an_error_and_no_fallback(bundle, monkeypatch):
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime lacks the provider that never takes a node")
    monkeypatch.setattr(placement, "PROVIDERS", {"cuda": "AzureExecutionProvider"})
    with pytest.raises(ValueError, match="AzureExecutionProvider took none of its nodes; CPU"):
        placement.load("cuda", bundle)


def test_a_provider_that_takes_the_model_serves_it(bundle, monkeypatch):
    monkeypatch.setattr(placement, "PROVIDERS", {"cuda": "CPUExecutionProvider"})
    session = placement.load_checked("cuda", bundle)
    assert session.placement == "cuda"
    assert session.raw(rows(3), ["score"])[0].shape == (3, 8)


@pytest.mark.parametrize("operator", ["Gemm", "Conv", "MatMul", "QLinearConv"])
def test_a_heavy_operator_that_is_left_to_another_provider_is_an_error(operator):
    taken = {"CUDAExecutionProvider": ["Add"], "CPUExecutionProvider": ["LabelEncoder", operator]}
    with pytest.raises(ValueError, match=f"left {operator} to CPUExecutionProvider"):
        placement._check_taken("cuda", "CUDAExecutionProvider", taken)


def test_strings_and_shapes_may_stay_on_the_processor():
    refused: list[str] = []
    for operator in ("LabelEncoder", "Shape", "Gemm"):
        taken = {"CUDAExecutionProvider": ["Gemm"], "CPUExecutionProvider": [operator]}
        try:
            placement._check_taken("cuda", "CUDAExecutionProvider", taken)
        except ValueError:
            refused.append(operator)
    assert refused == ["Gemm"]


def test_a_name_that_there_is_not_is_an_error_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'openvino'"):
        placement.checked("openvno")


# -- parity and choice -----------------------------------------------------------------------------


def test_answers_that_differ_too_much_are_an_error(bundle, monkeypatch):
    class Off(Session):
        def raw(self, feeds, outputs):
            return [np.asarray(a + 1, a.dtype) for a in super().raw(feeds, outputs)]

    plain = placement.load

    def load(name, given, threads=1):
        return plain("cpu", given) if name == "cpu" else Off(given.graph.model, 1)

    monkeypatch.setattr(placement, "load", load)
    with pytest.raises(ValueError, match=r"placement 'openvino': found answers that differ"):
        placement.load_checked("openvino", bundle)
    assert placement.load_checked("openvino", bundle, parity=10.0)
    choice = placement.choose(bundle, candidates=["cpu", "openvino"], seconds=0.0)
    assert choice.placement == "cpu"
    assert "answers differ by" in choice.trials[1].refused


def test_the_fastest_that_gives_the_same_is_picked_and_all_are_told(bundle, monkeypatch):
    slow = {"cpu": 4.0, "openvino": 1.0}
    sessions = {name: placement.load("cpu", bundle) for name in slow}
    monkeypatch.setattr(placement, "load", lambda name, *_: sessions[name])

    def times(given, *_):
        return {name: {1: slow[name], 64: slow[name]} for name in given}

    monkeypatch.setattr(placement, "_times", times)
    choice = placement.choose(bundle, candidates=["cpu", "openvino"])
    assert choice.placement == "openvino"
    assert [trial.placement for trial in choice.trials] == ["cpu", "openvino"]
    assert "openvino picked of: cpu 1 rows 4000000 µs" in str(choice)


@given(st.floats(0.951, 100.0))
def test_what_is_hardly_faster_is_not_worth_a_second_runtime(share):
    times = {"cpu": {1: 1e-3, 64: 2e-3}, "openvino": {1: share * 1e-3, 64: share * 2e-3}}
    assert placement._fastest(times) == "cpu"


def test_a_runtime_that_fails_in_its_own_way_is_passed_over(bundle, monkeypatch):
    """Such as a driver that is too old: ONNX Runtime's errors are neither of Python's kinds."""
    load = placement.load

    def broken(name, *rest):
        if name != "cpu":
            raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("no device")
        return load(name, *rest)

    monkeypatch.setattr(placement, "load", broken)
    choice = placement.choose(bundle, seconds=0.01, candidates=("cpu", "cuda"))
    assert choice.placement == "cpu"
    assert "cuda refused (no device)" in str(choice)


def test_measuring_tells_every_candidate_that_is_installed(bundle):
    choice = placement.choose(bundle, seconds=0.05)
    assert {trial.placement for trial in choice.trials} == set(placement.available())
    for trial in choice.trials:
        assert trial.refused or set(trial.seconds) == {1, 64}
    assert choice.placement in {trial.placement for trial in choice.trials if not trial.refused}


def arrays():
    reals = st.floats(allow_nan=True, allow_infinity=True, width=32)
    return st.lists(reals, min_size=1, max_size=20).map(lambda v: np.array(v, np.float32))


@given(arrays())
def test_an_array_is_no_way_from_itself(array):
    assert placement.difference([array], [array.copy()]) == 0.0


@pytest.mark.parametrize(
    ("found", "expected", "apart"),
    [
        (np.float32([1.5, 0.1]), np.float32([1.0, 0.0]), 0.5),
        (np.float32([101.0]), np.float32([100.0]), 0.01),
        (np.float32([np.nan]), np.float32([0.0]), math.inf),
        (np.float32([np.inf]), np.float32([1.0]), math.inf),
        (np.float32([1.0]), np.float64([1.0]), math.inf),
        (np.zeros((2, 1), "f"), np.zeros(2, "f"), math.inf),
        (np.int64([1, 2, 3, 4]), np.int64([1, 2, 3, 5]), 0.25),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), 0.5),
        (np.zeros(0, "f"), np.zeros(0, "f"), 0.0),
    ],
)
def test_difference_is_relative_above_one_and_a_share_for_what_is_no_real_number(
    found, expected, apart
):
    assert placement.difference([found], [expected]) == pytest.approx(apart)


def test_assignment_is_told_by_the_runtime_itself(bundle):
    session = Session(
        bundle.graph.model,
        1,
        configure=lambda o: o.add_session_config_entry(
            "session.record_ep_graph_assignment_info", "1"
        ),
    )
    assert "Gemm" in session.assignment()["CPUExecutionProvider"]
