"""Model A: a made click model as a bundle, and one request of it in each form that servers take.

26 categories and 13 numbers of a row are 39 raw columns. Each category has 10,000 values and an
embedding of 16; the numbers pass one layer to 16 as in DLRM (arXiv:1906.00091); so 26 × 16 + 16 =
432 enter an MLP 432-512-256-1 with ReLU between and a sigmoid behind.
"""

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.core.schema import MISSING_INT, Field, Schema

CATEGORIES = tuple(f"C{n}" for n in range(1, 27))
NUMBERS = tuple(f"I{n}" for n in range(1, 14))
VALUES = 10_000
WIDTH = 16
LAYERS = (512, 256, 1)
OUTPUT = "click"

Row = dict[str, int | float]


def write(path: Path, seed: int = 0) -> Bundle:
    """A bundle of the model at ``path``; the same seed gives the same digest."""
    inputs = Schema(
        (
            *(Field(name, "int64") for name in CATEGORIES),
            *(Field(name, "float32") for name in NUMBERS),
        )
    )
    manifest = Manifest(name="model_a", inputs=inputs, outputs=Schema((Field(OUTPUT, "float32"),)))
    return Bundle.write(path, graph(seed), manifest, {})


def graph(seed: int = 0) -> Graph:
    """The model with made weights; a missing value is category 0 or the number 0."""
    from onnx import TensorProto, helper

    nodes, constants = _columns_to_row()
    random = np.random.default_rng(seed)
    tables = random.normal(0, 0.1, (len(CATEGORIES) * VALUES, WIDTH)).astype(np.float32)
    constants["tables"] = tables
    nodes += [("Gather", ["tables", "places"], "embedded", {})]
    nodes += [("Reshape", ["embedded", "flat"], "embeddings", {})]
    width = len(CATEGORIES) * WIDTH
    constants["flat"] = np.array([-1, width], np.int64)
    nodes += _layer("dense", "dense_logits", len(NUMBERS), WIDTH, random, constants)
    nodes += [("Relu", ["dense_logits"], "dense_hidden", {})]
    nodes += [("Concat", ["embeddings", "dense_hidden"], "hidden0", {"axis": 1})]
    width += WIDTH
    for number, size in enumerate(LAYERS):
        nodes += _layer(f"hidden{number}", f"sum{number}", width, size, random, constants)
        width = size
        if number + 1 < len(LAYERS):
            nodes += [("Relu", [f"sum{number}"], f"hidden{number + 1}", {})]
    nodes += [("Reshape", [f"sum{len(LAYERS) - 1}", "all"], "logit", {})]
    nodes += [("Sigmoid", ["logit"], OUTPUT, {})]
    rows = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node(kind, given, [out], **extra) for kind, given, out, extra in nodes],
        "model_a",
        [
            *(rows(name, TensorProto.INT64, ["rows"]) for name in CATEGORIES),
            *(rows(name, TensorProto.FLOAT, ["rows"]) for name in NUMBERS),
        ],
        [rows(OUTPUT, TensorProto.FLOAT, ["rows"])],
        [
            helper.make_tensor(
                name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape, a.tobytes(), raw=True
            )
            for name, a in constants.items()
        ],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return Graph.from_proto(helper.make_model(made, ir_version=IR_VERSION, opset_imports=opsets))


_Node = tuple[str, list[str], str, dict[str, Any]]


def _columns_to_row() -> tuple[list[_Node], dict[str, Any]]:
    """39 vectors ``[rows]`` to ``places`` ``[rows, 26]`` in the table and ``dense`` ``[rows, 13]``.

    Joined end to end and turned round, which are three nodes where one unsqueeze each were 39.
    """
    constants: dict[str, Any] = {
        "by_category": np.array([len(CATEGORIES), -1], np.int64),
        "by_number": np.array([len(NUMBERS), -1], np.int64),
        "all": np.array([-1], np.int64),
        "missing": np.array(MISSING_INT, np.int64),
        "none": np.array(0, np.int64),
        "zero": np.array(0, np.float32),
        "starts": np.arange(len(CATEGORIES), dtype=np.int64) * VALUES,
    }
    nodes: list[_Node] = [
        ("Concat", list(CATEGORIES), "category_line", {"axis": 0}),
        ("Reshape", ["category_line", "by_category"], "category_lines", {}),
        ("Transpose", ["category_lines"], "given", {"perm": [1, 0]}),
        ("Equal", ["given", "missing"], "absent", {}),
        ("Where", ["absent", "none", "given"], "known", {}),
        ("Add", ["known", "starts"], "places", {}),
        ("Concat", list(NUMBERS), "number_line", {"axis": 0}),
        ("Reshape", ["number_line", "by_number"], "number_lines", {}),
        ("Transpose", ["number_lines"], "numbers", {"perm": [1, 0]}),
        ("IsNaN", ["numbers"], "unknown", {}),
        ("Where", ["unknown", "zero", "numbers"], "dense", {}),
    ]
    return nodes, constants


def _layer(
    given: str,
    out: str,
    width: int,
    size: int,
    random: np.random.Generator,
    constants: dict[str, Any],
) -> list[_Node]:
    scale = (2 / width) ** 0.5
    constants[f"{out}_weight"] = random.normal(0, scale, (width, size)).astype(np.float32)
    constants[f"{out}_bias"] = np.zeros(size, np.float32)
    return [("Gemm", [given, f"{out}_weight", f"{out}_bias"], out, {})]


def rows(count: int, seed: int = 0) -> list[Row]:
    """Made rows, numbers with four decimals as a client would write them."""
    random = np.random.default_rng((seed, count))
    categories = random.integers(0, VALUES, (count, len(CATEGORIES))).tolist()
    numbers = np.round(random.normal(0, 1, (count, len(NUMBERS))), 4).tolist()
    return [
        dict(zip((*CATEGORIES, *NUMBERS), (*whole, *real), strict=True))
        for whole, real in zip(categories, numbers, strict=True)
    ]


def poison() -> Row:
    """A row of the right types whose first category lies far beyond the table: the run fails."""
    return {**rows(1)[0], CATEGORIES[0]: 10**12}


def feeds(given: Iterable[Row]) -> dict[str, Any]:
    """The arrays that the graph takes."""
    given = list(given)
    return {
        name: np.array([row[name] for row in given], np.int64 if name in CATEGORIES else np.float32)
        for name in (*CATEGORIES, *NUMBERS)
    }


def row_json(row: Row) -> bytes:
    """One row as a person writes it: 39 named values."""
    return json.dumps(row, separators=(",", ":")).encode()


def v2_json(row: Row) -> bytes:
    """One row in V2 JSON, as two tensors: what a user gives a server whose price is per tensor."""
    whole, real = [row[name] for name in CATEGORIES], [row[name] for name in NUMBERS]
    tensors = [("categories", "INT64", whole), ("numbers", "FP32", real)]
    inputs = [
        {"name": name, "datatype": kind, "shape": [1, len(data)], "data": data}
        for name, kind, data in tensors
    ]
    return json.dumps({"inputs": inputs}, separators=(",", ":")).encode()


def v2_binary(given: Iterable[Row]) -> tuple[bytes, int]:
    """Rows in V2 with binary tensors, the answer binary too; and the length of the JSON part."""
    arrays = feeds(given)
    inputs = [
        {
            "name": name,
            "datatype": "INT64" if name in CATEGORIES else "FP32",
            "shape": [len(array)],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    outputs = [{"name": OUTPUT, "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": inputs, "outputs": outputs}, separators=(",", ":")).encode()
    return b"".join((head, *(array.tobytes() for array in arrays.values()))), len(head)


def grpc_message(given: Iterable[Row], model: str) -> bytes:
    """Rows as ``inference.ModelInferRequest`` with raw contents, in gRPC's length-prefixed frame.

    Source: the Open Inference Protocol's ``grpc_predict_v2.proto``; a few fields by hand, so that
    load needs no generated code.
    """
    arrays = feeds(given)
    parts = [_bytes(1, model.encode())]
    for name, array in arrays.items():
        kind = b"INT64" if name in CATEGORIES else b"FP32"
        shape = _bytes(3, _varint(len(array)))
        parts.append(_bytes(5, _bytes(1, name.encode()) + _bytes(2, kind) + shape))
    parts += [_bytes(7, array.tobytes()) for array in arrays.values()]
    message = b"".join(parts)
    return struct.pack(">BI", 0, len(message)) + message


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
