"""The server against its own OpenAPI document, by requests that Schemathesis makes of it."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import OPSET, Graph
from drivetrain.core.schema import Dtype, Field, Schema

ROOT = Path(__file__).parents[2]
TOKEN = "sesame"
# What JSON Schema cannot say: as many values as a shape says, or as the other columns have. A
# 503 or 504 is no failure of the server: it is full, or the time that a client gave was over.
CONFIGURATION = r"""
[checks]
not_a_server_error.expected-statuses = ["2xx", "4xx", 503, 504]

[[operations]]
include-path-regex = "/infer$|:predict$"
checks.positive_data_acceptance.enabled = false
"""
EVERY: tuple[tuple[str, Dtype, tuple[int, ...], int], ...] = (
    ("word", "string", (), TensorProto.STRING),
    ("count", "int64", (), TensorProto.INT64),
    ("at", "timestamp", (), TensorProto.INT64),
    ("small", "float32", (), TensorProto.FLOAT),
    ("large", "float64", (), TensorProto.DOUBLE),
    ("vector", "float32", (3,), TensorProto.FLOAT),
)


def echo(path: Path, columns: tuple[tuple[str, Dtype, tuple[int, ...], int], ...]) -> Bundle:
    """A bundle that takes every value of its columns, and gives it back."""
    nodes, inputs, outputs = [], [], []
    for name, _, shape, kind in columns:
        nodes.append(helper.make_node("Identity", [name], [f"{name}_again"]))
        inputs.append(helper.make_tensor_value_info(name, kind, ["rows", *shape]))
        outputs.append(helper.make_tensor_value_info(f"{name}_again", kind, ["rows", *shape]))
    graph = helper.make_graph(nodes, "echo", inputs, outputs)
    made = Graph.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    )
    schema = Schema(tuple(Field(name, dtype, shape) for name, dtype, shape, _ in columns))
    manifest = Manifest(name="echo", inputs=schema, outputs=made.outputs)
    return Bundle.write(path, made, manifest, {})


@pytest.fixture(scope="module")
def schemathesis(environment: Callable[..., Path]) -> Path:
    """The command, in an environment of its own: its plug-in would slow every run of pytest."""
    return environment("schemathesis", "schemathesis==4.32.5", constraints=True).with_name("st")


@pytest.mark.slow
def test_no_request_that_schemathesis_makes_finds_a_fault(
    schemathesis: Path, serve: Callable[..., Any], tmp_path: Path
):
    every, one = echo(tmp_path / "every", EVERY), echo(tmp_path / "one", EVERY[3:4])
    client = serve({"every": every.path, "one": one.path}, token=TOKEN)
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    done = subprocess.run(
        [schemathesis, "--config-file", "schemathesis.toml", "run", f"{client.url}/openapi.json",
         "-H", f"Authorization: Bearer {TOKEN}", "--seed", "1", "--max-examples", "8",
         "--max-time", "40",
         "--continue-on-failure", "--no-color"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2000:]
    tested = re.search(r"(\d+) generated", done.stdout)
    assert tested is not None
    assert int(tested[1]) > 200
    assert "Tested: " in done.stdout
