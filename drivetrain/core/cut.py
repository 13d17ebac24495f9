"""A bundle's graph in two: the features, and the model behind their tensors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.core.need import need

if TYPE_CHECKING:
    import onnx

    from drivetrain.core.schema import Field, Schema


@dataclass(frozen=True)
class Halves:
    """Two graphs that give together what one gave.

    Attributes:
        front: raw columns to ``between``; None where nothing is between.
        back: ``between``, and raw columns that the model takes itself, to the outputs.
        between: the tensors that go from one to the other.
        front_inputs: names of what the first takes.
        back_inputs: names of what the second takes, ``between`` among them.
    """

    front: bytes | None
    back: bytes
    between: tuple[str, ...]
    front_inputs: tuple[str, ...]
    back_inputs: tuple[str, ...]


def cut(model: "onnx.ModelProto", tensors: "Schema") -> Halves:
    """Cut a model at those of ``tensors`` that its nodes give and others take.

    Args:
        model: the joined graph of a bundle.
        tensors: what its feature part gives; a model without any is all back.
    """
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    behind = _above(graph, [value.name for value in graph.output], {f.name for f in tensors})
    taken = {name for node in behind for name in _reads(node)}
    between = [field for field in tensors if field.name in made & taken]
    if not between:
        names = tuple(_inputs(graph, graph.node))
        return Halves(None, model.SerializeToString(), (), (), names)
    places = [_value(field) for field in between]
    ahead = _above(graph, [field.name for field in between], set())
    raw = {value.name: value for value in graph.input}
    front_inputs = _inputs(graph, ahead)
    back_inputs = [name for name in _inputs(graph, behind) if name not in made]
    front = _model(model, ahead, [raw[name] for name in front_inputs], places)
    back = _model(model, behind, [*places, *(raw[n] for n in back_inputs)], graph.output)
    names = tuple(field.name for field in between)
    return Halves(
        front.SerializeToString(),
        back.SerializeToString(),
        names,
        tuple(front_inputs),
        (*names, *back_inputs),
    )


def _above(
    graph: "onnx.GraphProto", wanted: Iterable[str], given: set[str]
) -> "list[onnx.NodeProto]":
    """The nodes that ``wanted`` needs when ``given`` is there already, in their order."""
    maker = {name: at for at, node in enumerate(graph.node) for name in node.output}
    found: set[int] = set()
    left = [name for name in wanted if name not in given]
    while left:
        at = maker.get(left.pop())
        if at is None or at in found:
            continue
        found.add(at)
        left += [name for name in _reads(graph.node[at]) if name not in given]
    return [graph.node[at] for at in sorted(found)]


def _reads(node: "onnx.NodeProto") -> list[str]:
    """The tensors that a node takes, those that the graphs inside it take included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        inner = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        for graph in inner:
            own = {name for each in graph.node for name in each.output}
            own |= {value.name for value in graph.input}
            own |= {tensor.name for tensor in graph.initializer}
            reads = [name for each in graph.node for name in _reads(each)]
            reads += [value.name for value in graph.output]
            names += [name for name in reads if name not in own]
    return names


def _inputs(graph: "onnx.GraphProto", nodes: "Iterable[onnx.NodeProto]") -> list[str]:
    """The graph's inputs that some nodes take, in the graph's order."""
    reads = {name for node in nodes for name in _reads(node)}
    constant = {tensor.name for tensor in graph.initializer}
    return [v.name for v in graph.input if v.name in reads and v.name not in constant]


def _model(
    whole: "onnx.ModelProto",
    nodes: "Sequence[onnx.NodeProto]",
    inputs: "Iterable[onnx.ValueInfoProto]",
    outputs: "Iterable[onnx.ValueInfoProto]",
) -> "onnx.ModelProto":
    part = type(whole)()
    part.ir_version = whole.ir_version
    domains = {node.domain for node in nodes}
    part.opset_import.extend(e for e in whole.opset_import if not e.domain or e.domain in domains)
    part.graph.name = whole.graph.name
    part.graph.node.extend(nodes)
    reads = {name for node in nodes for name in _reads(node)}
    part.graph.initializer.extend(t for t in whole.graph.initializer if t.name in reads)
    part.graph.input.extend(inputs)
    part.graph.output.extend(outputs)
    return part


def _value(field: "Field") -> "onnx.ValueInfoProto":
    helper = need("onnx.helper", "openvino")
    kind = {"float32": 1, "int64": 7}[field.dtype]  # features are of these two types alone
    return helper.make_tensor_value_info(field.name, kind, ["rows", *field.shape])
