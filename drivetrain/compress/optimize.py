"""ONNX Runtime's own graph optimisation, made once and written down as a graph."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain.core.errors import unknown
from drivetrain.core.need import need

if TYPE_CHECKING:
    import onnx

    from drivetrain.core.batch import Batch
    from drivetrain.core.graph import Graph

LEVELS = ("basic", "extended")
_FLAG = {"basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED"}


@dataclass(frozen=True)
class Optimize:
    """Folds constants and fuses nodes now, rather than at each start of a server.

    A session does the same when it loads a graph, so predictions a second stay as they are:
    what is gained is the time to load, and a graph without dead ends.

    Attributes:
        level: ``basic`` rewrites with standard operators only; ``extended`` also fuses into
            operators of ONNX Runtime's own domain ``com.microsoft``, which no other runtime
            reads. The level that lays tensors out for one processor is not offered: a bundle
            travels. ``Quantize`` knows standard operators only, so it comes before this.
    """

    level: str = "extended"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise unknown("level", self.level, LEVELS, "Optimize")

    @property
    def name(self) -> str:
        """The name under which its figures appear."""
        return f"optimize-{self.level}"

    def __call__(self, graph: "Graph", calibration: Callable[[], Iterable["Batch"]]) -> "Graph":
        """The same function of the same inputs, in fewer nodes; nothing is calibrated."""
        return optimized(graph, self.level)


def optimized(graph: "Graph", level: str) -> "Graph":
    """The graph as ONNX Runtime rewrites it at ``level``, its inputs and outputs as they were."""
    from drivetrain.core.graph import Graph

    onnx = need("onnx", "train")
    ort = need("onnxruntime", "serve")
    with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
        path = Path(directory) / "model.onnx"
        options: Any = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _FLAG[level])
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        ort.InferenceSession(graph.model, options, providers=["CPUExecutionProvider"])
        model = onnx.load_model(path)
    restore_ends(model, graph.proto)
    drop_unused_domains(model)
    return Graph.from_proto(model)


def restore_ends(model: "onnx.ModelProto", original: "onnx.ModelProto") -> None:
    """Give a rewritten model the very inputs, outputs and data of the original one.

    An optimizer may drop an input that nothing reads, or forget the name of a free dimension;
    both belong to what callers were promised. So do initializers that are inputs as well, which a
    server feeds with what it learnt, and those that no node reads: data that travels with a graph.
    """
    live = {value.name for value in original.graph.input}
    read = {name for graph in _nested(original) for node in graph.node for name in node.input}
    here = {tensor.name for tensor in model.graph.initializer}
    for tensor in original.graph.initializer:
        if tensor.name not in here and (tensor.name in live or tensor.name not in read):
            model.graph.initializer.append(tensor)
    del model.graph.input[:]
    model.graph.input.extend(original.graph.input)
    del model.graph.output[:]
    model.graph.output.extend(original.graph.output)


def drop_unused_domains(model: "onnx.ModelProto") -> None:
    """Import no more operator sets than the nodes use; ONNX Runtime writes all that it knows."""
    used = {""}
    for graph in _nested(model):
        used.update("" if node.domain == "ai.onnx" else node.domain for node in graph.node)
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _nested(model: "onnx.ModelProto") -> "list[onnx.GraphProto]":
    """A model's graph and all that are inside of nodes."""
    graphs = [model.graph]
    for graph in graphs:  # grows by the graphs inside of nodes
        for node in graph.node:
            graphs.extend(a.g for a in node.attribute if a.HasField("g"))
            graphs.extend(inner for a in node.attribute for inner in a.graphs)
    return graphs
