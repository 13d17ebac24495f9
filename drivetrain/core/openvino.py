"""A bundle's graph with its model in OpenVINO and its features in ONNX Runtime."""

import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from drivetrain.core.cut import cut
from drivetrain.core.graph import Graph, Session
from drivetrain.core.need import need

if TYPE_CHECKING:
    import onnx

    from drivetrain.core.batch import Array
    from drivetrain.core.schema import FeatureSchema

EXTRA = "openvino"
_HINT = {"fp32": "f32", "bf16": "bf16"}


class OpenVINOSession(Session):
    """A graph that was cut at its features' tensors. Safe to use from threads.

    OpenVINO has no strings and none of the operators of ``ai.onnx.ml``, and features in bfloat16
    would lose what a time or an amount says. So features stay where they are computed everywhere
    else, to the same bits, and OpenVINO gets the model: all of it, or the graph is refused.

    Args:
        graph: raw columns to predictions.
        features: what its feature part gives; none where the model takes raw columns.
        precision: ``fp32`` or ``bf16``, which weights and activations are then rounded to.
        threads: of one run; 0 takes one for each core.

    Raises:
        ImportError: ``openvino`` or ``onnx`` is not installed.
        ValueError: OpenVINO cannot run the model, or not in this precision on this processor.
    """

    def __init__(
        self, graph: Graph, features: "FeatureSchema", precision: str = "fp32", threads: int = 0
    ) -> None:
        self.placement = "openvino" if precision == "fp32" else f"openvino-{precision}"
        model = _onnx(graph)
        held = {tensor.name for tensor in model.graph.initializer}
        if live := sorted({value.name for value in model.graph.input} & held):
            why = f"{', '.join(live)} change between runs, and would be compiled as they are"
            raise ValueError(self._refuses(why))
        self._halves = halves = cut(model, features.tensors)
        self._front = None if halves.front is None else Session(halves.front, threads)
        core = _core()
        able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in able:
            raise ValueError(self._refuses(f"this processor computes {', '.join(able)}"))
        settings = {
            "INFERENCE_PRECISION_HINT": _HINT[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        try:
            self._compiled = core.compile_model(core.read_model(halves.back), "CPU", settings)
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise ValueError(self._refuses(last)) from None
        computed = _precisions(self._compiled)
        if precision == "bf16" and "bf16" not in computed:
            raise ValueError(self._refuses(f"it computes the graph in {', '.join(computed)}"))
        self.inputs = _shapes(graph)
        self.input_schema = graph.inputs
        self.outputs = graph.outputs
        self.live = frozenset[str]()
        self._of_thread = threading.local()

    def raw(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> "list[Array]":
        """Run over arrays that are already as the graph takes them."""
        halves, given = self._halves, dict(feeds)
        if self._front is not None:
            taken = {name: feeds[name] for name in halves.front_inputs}
            given |= zip(halves.between, self._front.raw(taken, halves.between), strict=True)
        request = getattr(self._of_thread, "request", None)
        if request is None:
            request = self._of_thread.request = self._compiled.create_infer_request()
        taken = {name: _as_openvino_knows(given[name]) for name in halves.back_inputs}
        request.infer(taken, share_inputs=True)
        return [
            given[name] if name in halves.between else request.get_tensor(name).data.copy()
            for name in outputs
        ]

    def _refuses(self, why: str) -> str:
        return f"placement: found {self.placement!r}, which does not take this graph: {why}"


def _as_openvino_knows(array: "Array") -> "Array":
    """OpenVINO goes by the type's C name, and ONNX Runtime calls an int64 ``long long``."""
    return array.view(np.int64) if array.dtype == np.int64 else array


@cache
def _core() -> Any:
    """The one core of this process, which is never destroyed.

    OpenVINO's CPU plugin gives the thread that makes it another stack for signals, and unmaps that
    when it is destroyed: of two cores that go in the order in which they came, the second one puts
    the unmapped stack of the first back, and the next signal ends the process.
    """
    return _openvino().Core()


def _openvino() -> Any:
    """OpenVINO without its telemetry, which at its import begins to tell its makers of its use."""
    telemetry = "openvino_telemetry"
    absent = telemetry not in sys.modules
    if absent:
        sys.modules[telemetry] = None  # type: ignore[assignment]  # to import it is an ImportError
    try:
        return need("openvino", EXTRA)
    finally:
        if absent:
            del sys.modules[telemetry]


def _onnx(graph: Graph) -> "onnx.ModelProto":
    return need("onnx", EXTRA).load_model_from_string(graph.model)


def _shapes(graph: Graph) -> tuple[tuple[str, tuple[int | str | None, ...]], ...]:
    """Each input's name and shape, as ONNX Runtime would give them."""
    shapes: list[tuple[str, tuple[int | str | None, ...]]] = []
    for value in _onnx(graph).graph.input:
        if value.name in graph.inputs:
            dims = value.type.tensor_type.shape.dim
            shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in dims)
            shapes.append((value.name, shape))
    return tuple(shapes)


def _precisions(compiled: Any) -> set[str]:
    """What the operators of a compiled model are computed in."""
    operators = compiled.get_runtime_model().get_ops()
    return {_text(each.get_rt_info()["runtimePrecision"]) for each in operators}


def _text(entry: Any) -> str:
    return str(getattr(entry, "value", entry))
