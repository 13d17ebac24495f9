"""Where a graph runs: OpenVINO beside ONNX Runtime, and strings beside integers.

    python bench/placement.py --quick --json

A made convolutional net (six layers over 3×32×32, model B of the serving figures) and a made click
model (26 embeddings and an MLP 432-512-256-1, its columns in two tensors) run 1 and 64 rows, one
thread, in turn. A figure ``openvino_bf16_cnn_b64`` is the speed of that placement over plain ONNX
Runtime; ``auto_…`` that of what `auto` picked. bfloat16 pays where the processor has AMX.

``string_vs_integer`` is the same model behind a column of 50,000 words, over itself behind an
integer column, from decoded values to predictions as the server runs them.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench.figure import Figure, figure, show, speed_ratios, words
from drivetrain.core import placement
from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import IR_VERSION, ML_OPSET, OPSET, Graph
from drivetrain.core.schema import Field, Schema
from drivetrain.serve.execution.models import Artefact, Model

Node = tuple[str, list[str], str, dict[str, Any]]
WORDS = 50_000
GOALS = {"cnn": {"openvino": 1.0, "openvino-bf16": 3.8}, "click": {}}
"""What is held against: for the net what was measured with AMX, else no loss."""


def figures(quick: bool) -> Iterator[Figure]:
    """``openvino_…``, ``openvino_bf16_…`` and ``auto_…`` of each model and batch, and
    ``string_vs_integer_b1`` and ``_b64``."""
    rounds = 5 if quick else 21
    with tempfile.TemporaryDirectory() as folder:
        for name, bundle in (("cnn", cnn(Path(folder))), ("click", click(Path(folder)))):
            yield from _placements(name, bundle, rounds)
        yield from _strings(Path(folder), rounds)


def _placements(name: str, bundle: Bundle, rounds: int) -> Iterator[Figure]:
    peer = "ONNX Runtime 1.31's CPU provider, one thread"
    plain = placement.load("cpu", bundle)
    choice = placement.choose(bundle)
    print(f"{name}: {choice}", file=sys.stderr)
    ran = [trial for trial in choice.trials if not trial.refused and trial.placement != "cpu"]
    sides = {trial.placement: trial.placement for trial in ran} | {"auto": choice.placement}
    for side, place in sides.items():
        session = placement.load(place, bundle)
        for rows in (1, 64):
            given, outputs = _made(bundle, rows), bundle.manifest.outputs.names
            ours = _often(lambda s=session, g=given, o=outputs: s.raw(g, o), rows)
            theirs = _often(lambda g=given, o=outputs: plain.raw(g, o), rows)
            ratios = speed_ratios(ours, theirs, rounds)
            label = f"{side.replace('-', '_')}_{name}_b{rows}"
            yield figure(label, ratios, peer, GOALS[name].get(side, 1.0))


def _strings(folder: Path, rounds: int) -> Iterator[Figure]:
    random = np.random.default_rng(0)
    models = {kind: _load(lookup(folder, kind)) for kind in ("string", "int64")}
    for rows in (1, 64):
        codes = random.integers(0, WORDS, (200, rows)).tolist()
        given = {
            "int64": codes,
            "string": [[f"word-{code:05d}" for code in row] for row in codes],
        }

        def over(kind: str, given: dict[str, Any] = given) -> Callable[[], None]:
            model, requests = models[kind], given[kind]

            def work() -> None:
                for values in requests:
                    model.run([[values]])

            return work

        ratios = speed_ratios(over("string"), over("int64"), rounds)
        yield figure(f"string_vs_integer_b{rows}", ratios, "the same net, integer column", 0.75)


def _load(bundle: Bundle) -> Model:
    return Model.load("made", Artefact(bundle.digest, bundle.path))


def _often(run: Callable[[], object], rows: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(200 if rows == 1 else 20):
            run()

    return work


def _made(bundle: Bundle, rows: int) -> dict[str, Any]:
    random = np.random.default_rng(rows)
    arrays: dict[str, Any] = {}
    for field in bundle.manifest.inputs:
        shape = (rows, *field.shape)
        whole = field.dtype == "int64"
        arrays[field.name] = (
            random.integers(0, 1000, shape)
            if whole
            else random.normal(size=shape).astype(np.float32)
        )
    return arrays


# -- made models -----------------------------------------------------------------------------------


def cnn(folder: Path, seed: int = 0) -> Bundle:
    """Six convolutions over 3×32×32, two poolings, ten classes."""
    random = np.random.default_rng(seed)
    nodes: list[Node] = []
    weights: dict[str, Any] = {}
    given, channels = "image", 3
    for number, width in enumerate((32, 32, 64, 64, 128, 128)):
        scale = (2 / (channels * 9)) ** 0.5
        weights[f"w{number}"] = random.normal(0, scale, (width, channels, 3, 3))
        weights[f"b{number}"] = np.zeros(width)
        pads = {"pads": [1, 1, 1, 1]}
        nodes += [("Conv", [given, f"w{number}", f"b{number}"], f"c{number}", pads)]
        nodes += [("Relu", [f"c{number}"], f"r{number}", {})]
        given, channels = f"r{number}", width
        if number % 2:
            pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
            nodes += [("MaxPool", [given], f"p{number}", pool)]
            given = f"p{number}"
    weights["head"] = random.normal(0, 0.1, (128, 10))
    nodes += [("GlobalAveragePool", [given], "pooled", {}), ("Flatten", ["pooled"], "flat", {})]
    nodes += [("MatMul", ["flat", "head"], "logits", {})]
    inputs = Schema((Field("image", "float32", (3, 32, 32)),))
    return _write(folder / "cnn", nodes, weights, inputs, Field("logits", "float32", (10,)))


def click(folder: Path, seed: int = 0, values: int = 10_000, width: int = 16) -> Bundle:
    """26 embeddings and 13 numbers, an MLP 432-512-256-1 behind them."""
    random = np.random.default_rng(seed)
    weights: dict[str, Any] = {
        "starts": np.arange(26) * values,
        "table": random.normal(0, 0.1, (26 * values, width)),
        "flat": np.array([-1, 26 * width]),
        "projection": random.normal(0, 0.3, (13, width)),
    }
    nodes: list[Node] = [
        ("Add", ["categories", "starts"], "places", {}),
        ("Gather", ["table", "places"], "looked_up", {}),
        ("Reshape", ["looked_up", "flat"], "embeddings", {}),
        ("MatMul", ["numbers", "projection"], "projected", {}),
        ("Concat", ["embeddings", "projected"], "h0", {"axis": 1}),
    ]
    sizes = (27 * width, 512, 256, 1)
    nodes += _mlp("h0", sizes, weights, random)
    inputs = Schema((Field("categories", "int64", (26,)), Field("numbers", "float32", (13,))))
    return _write(folder / "click", nodes, weights, inputs, Field("click", "float32", (1,)))


def lookup(folder: Path, kind: str, seed: int = 0) -> Bundle:
    """A column ``value`` that is a place in a table, or a word whose place the graph looks up."""
    random = np.random.default_rng(seed)
    weights: dict[str, Any] = {"table": random.normal(0, 0.1, (WORDS + 1, 16))}
    nodes: list[Node] = []
    if kind == "string":
        encode = {
            "domain": "ai.onnx.ml",
            "keys_strings": [f"word-{n:05d}" for n in range(WORDS)],
            "values_int64s": list(range(WORDS)),
            "default_int64": WORDS,
        }
        nodes += [("LabelEncoder", ["value"], "place", encode)]
    else:
        weights |= {"least": np.array(0)}
        nodes += [("Max", ["value", "least"], "place", {})]  # a missing one is the least int64
    nodes += [("Gather", ["table", "place"], "h0", {})]
    nodes += _mlp("h0", (16, 64, 32, 1), weights, random)
    inputs = Schema((Field("value", "string" if kind == "string" else "int64"),))
    return _write(folder / kind, nodes, weights, inputs, Field("click", "float32", (1,)))


def _mlp(
    given: str, sizes: Sequence[int], weights: dict[str, Any], random: np.random.Generator
) -> list[Node]:
    nodes: list[Node] = []
    for number, (wide, narrow) in enumerate(pairwise(sizes)):
        weights[f"m{number}"] = random.normal(0, (2 / wide) ** 0.5, (wide, narrow))
        weights[f"n{number}"] = np.zeros(narrow)
        nodes += [("Gemm", [given, f"m{number}", f"n{number}"], f"s{number}", {})]
        given = f"s{number}"
        if number + 2 < len(sizes):
            nodes += [("Relu", [given], f"a{number}", {})]
            given = f"a{number}"
    return [*nodes, ("Sigmoid", [given], "click", {})]


def _write(
    path: Path, nodes: list[Node], weights: dict[str, Any], inputs: Schema, output: Field
) -> Bundle:
    from onnx import TensorProto, helper, numpy_helper

    kinds = {
        "float32": TensorProto.FLOAT,
        "int64": TensorProto.INT64,
        "string": TensorProto.STRING,
    }
    arrays = {
        name: array.astype(np.float32) if array.dtype == np.float64 else array
        for name, array in weights.items()
    }
    ends = [
        [helper.make_tensor_value_info(f.name, kinds[f.dtype], ["rows", *f.shape]) for f in fields]
        for fields in (inputs, (output,))
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, given, [out], **rest) for kind, given, out, rest in nodes],
        path.name,
        *ends,
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets)
    manifest = Manifest(name=path.name, inputs=inputs, outputs=Schema((output,)))
    return Bundle.write(path, Graph.from_proto(model), manifest, {})


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
