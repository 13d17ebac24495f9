"""Int8 quantization of a graph's matrix products: calibrated on raw rows, or as rows come."""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain.compress.optimize import optimized, restore_ends
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.need import need

if TYPE_CHECKING:
    import onnx

    from drivetrain.core.batch import Batch
    from drivetrain.core.graph import Graph

SCHEMES = ("int8", "int8-dynamic")
OPERATORS = ("Conv", "Gemm", "MatMul")
RANGES = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
CHUNK = 256  # rows that run at once while calibrating: what bounds the memory


@dataclass(frozen=True)
class Quantize:
    """Weights and activations of matrix products as 8-bit integers.

    Nodes get a scale for each tensor (``QuantizeLinear`` and ``DequantizeLinear`` around them, a
    form that every ONNX runtime reads), learnt by running the whole graph, raw columns in, over
    rows of the validation split. Nodes without constant weights stay as they are, the features'
    among them. (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference".)

    What matrix products answer stays float unless the next product reads it: eight bits for
    the logits themselves would leave 256 different predictions, and ties that a ranking feels.

    ``int8-dynamic`` learns nothing beforehand: each product takes the range of what it reads, every
    time. It costs small models less accuracy, and is fast for few rows; but the range is that of
    all rows of a batch, so what one row is answered depends, by a little, on those beside it.
    Convolutions stay float: ONNX Runtime has no fast kernel for them in this form.

    Attributes:
        scheme: ``int8`` or ``int8-dynamic``.
        calibration_rows: how many rows are run to learn the ranges of ``int8``, from the first on.
        operators: which operators are quantized, of ``MatMul``, ``Gemm`` and ``Conv``.
        per_channel: a scale for each output channel of the weights, which helps where channels
            differ much.
        ranges: of ``int8``: ``minmax`` takes the range seen; ``percentile`` cuts the outermost
            0.001 % and ``entropy`` what costs least information; these two hold all that the
            nodes give for all calibration rows in memory.
        exclude: patterns of node names that stay float, such as ``"*/head*"``.
    """

    scheme: str = "int8"
    calibration_rows: int = field(default=2048, kw_only=True)
    operators: tuple[str, ...] = field(default=("MatMul", "Gemm", "Conv"), kw_only=True)
    per_channel: bool = field(default=False, kw_only=True)
    ranges: str = field(default="minmax", kw_only=True)
    exclude: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise unknown("scheme", self.scheme, SCHEMES, "Quantize")
        if self.ranges not in RANGES:
            raise unknown("ranges", self.ranges, RANGES, "Quantize")
        if self.calibration_rows < 1:
            raise wrong("Quantize.calibration_rows", self.calibration_rows, "1 or more")
        if not isinstance(self.operators, tuple) or not self.operators:
            raise wrong("Quantize.operators", self.operators, "a tuple of operators")
        for operator in self.operators:
            if operator not in OPERATORS:
                raise unknown("operator", operator, OPERATORS, "Quantize")
        if self.scheme == "int8-dynamic" and self.ranges != "minmax":
            allowed = "minmax, for int8-dynamic learns no ranges"
            raise wrong("Quantize.ranges", self.ranges, allowed)

    @property
    def name(self) -> str:
        """The name under which its figures appear."""
        return self.scheme

    def __call__(self, graph: "Graph", calibration: Callable[[], Iterable["Batch"]]) -> "Graph":
        """The quantized graph, with the inputs and outputs of the one given.

        Raises:
            ValueError: nothing in the graph can be quantized, or there are no calibration rows.
        """
        from drivetrain.core.graph import Graph

        folded = optimized(graph, "basic").proto  # so that weights are constants, biases fused
        entry = folded.metadata_props.add()  # else the library warns that nobody prepared it
        entry.key, entry.value = "onnx.quant.pre_process", "onnxruntime.quant"
        if self.scheme == "int8-dynamic":
            model = self._dynamic(folded)
        else:
            model = self._static(folded, graph, calibration)
            _check_scales(model)
        restore_ends(model, graph.proto)
        return Graph.from_proto(model)

    def _dynamic(self, folded: "onnx.ModelProto") -> "onnx.ModelProto":
        """The graph with products whose ranges are taken as rows come."""
        onnx = need("onnx", "train")
        quantization = need("onnxruntime.quantization", "train")
        operators = [operator for operator in self.operators if operator != "Conv"]
        nodes = self._candidates(folded, operators)
        with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
            path = Path(directory) / "model.onnx"
            quantization.quantize_dynamic(
                folded,
                path,
                op_types_to_quantize=["MatMul"],
                # The library first makes a MatMul of each Gemm, and names it so.
                nodes_to_quantize=[*nodes, *(f"{name}_MatMul" for name in nodes)],
                per_channel=self.per_channel,
                weight_type=quantization.QuantType.QInt8,
            )
            return onnx.load_model(path)

    def _static(
        self,
        folded: "onnx.ModelProto",
        graph: "Graph",
        calibration: Callable[[], Iterable["Batch"]],
    ) -> "onnx.ModelProto":
        """The graph with ranges learnt by running it over calibration rows."""
        import numpy as np

        onnx = need("onnx", "train")
        quantization = need("onnxruntime.quantization", "train")
        nodes = self._candidates(folded, self.operators)
        with (
            tempfile.TemporaryDirectory(prefix="drivetrain-") as directory,
            redirect_stdout(StringIO()),  # the library prints there, where a program may read
            np.errstate(all="ignore"),  # a range that is not finite is refused below, by name
        ):
            path = Path(directory) / "model.onnx"
            quantization.quantize_static(
                folded,
                path,
                _reader(_chunks(graph, calibration(), self.calibration_rows)),
                quant_format=quantization.QuantFormat.QDQ,
                nodes_to_quantize=nodes,
                op_types_to_quantize=list(self.operators),
                per_channel=self.per_channel,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=getattr(quantization.CalibrationMethod, RANGES[self.ranges]),
                extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
            )
            return onnx.load_model(path)

    def _candidates(self, model: "onnx.ModelProto", operators: Sequence[str]) -> list[str]:
        """The names of the nodes to quantize; a node without a name gets one."""
        weights = {tensor.name for tensor in model.graph.initializer}
        weights -= {value.name for value in model.graph.input}
        found: list[str] = []
        for number, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}_{number}"
            fits = node.op_type in operators and node.input[1] in weights
            if fits and not any(fnmatchcase(node.name, pattern) for pattern in self.exclude):
                found.append(node.name)
        if not found:
            present = ", ".join(sorted({node.op_type for node in model.graph.node}))
            raise ValueError(
                f"Quantize: found no {' or '.join(operators)} with constant weights that is "
                f"not excluded, among the operators {present}; a graph that Optimize('extended') "
                "fused, or that training made in eight bits (quantize=), has none any more."
            )
        return found


def _check_scales(model: "onnx.ModelProto") -> None:
    """A range that holds no number gives a scale that makes every prediction NaN."""
    numpy_helper = need("onnx.numpy_helper", "train")
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in values:
            scale = numpy_helper.to_array(values[node.input[1]])
            if not math.isfinite(scale.sum()):
                raise ValueError(
                    f"Quantize: tensor {node.input[0]!r} is NaN or infinite on calibration rows, "
                    "allowed: finite numbers; a feature should make missing values explicit."
                )


def _chunks(graph: "Graph", batches: Iterable["Batch"], rows: int) -> Iterator[dict[str, Any]]:
    """What the graph is fed with, a chunk at a time, from the first ``rows`` rows.

    All chunks are of one size, which the library asks for; the few rows of the rest are left.
    """
    from drivetrain.core.batch import Batch, feed

    inputs = graph.session(1).inputs
    parts: list[Batch] = []
    left = rows
    for batch in batches:
        if len(batch):
            parts.append(batch.slice(0, left))
            left -= len(parts[-1])
        if not left:
            break
    if not parts:
        raise ValueError(
            "Quantize: found 0 calibration rows in the validation split, allowed: 1 or more."
        )
    whole = Batch.concat(parts)
    size = len(whole) // -(-len(whole) // CHUNK)
    for start in range(0, len(whole) - size + 1, size):
        part = whole.slice(start, start + size)
        yield {name: feed(part, name, shape) for name, shape in inputs}


def _reader(chunks: Iterator[dict[str, Any]]) -> Any:
    """The chunks as ONNX Runtime's quantizer asks for them: one a call, then None."""
    base = need("onnxruntime.quantization", "train").CalibrationDataReader

    class Reader(base):
        def get_next(self) -> dict[str, Any] | None:
            return next(chunks, None)

    return Reader()
