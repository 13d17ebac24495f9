"""Writes the nodes of a graph, one expression a node."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from drivetrain.core.batch import BYTES_SUFFIX
from drivetrain.core.graph import IR_VERSION, ML_OPSET, OPSET, Graph
from drivetrain.core.need import need
from drivetrain.core.schema import ONNX_TYPE, Field

if TYPE_CHECKING:
    import onnx

    from drivetrain.core.batch import Array

MOST_BYTES = 2**31 - 2**24
"""What a serialized graph can hold (protobuf), less some room for its nodes."""
MOST_TEXT = 256
"""Bytes that are read of a text that enters as bytes, however long others in its batch are."""


class Nodes:
    """Collects nodes in order; tensors are known by their names.

    A part that runs inside of a node (the body of a ``Scan``) is a child: it sees the tensors of
    its parent, and constants of all lie with the outermost.

    Args:
        parent: of a body; None for the graph itself.
    """

    def __init__(self, parent: "Nodes | None" = None) -> None:
        self._onnx = need("onnx", "train")
        self._root: Nodes = self if parent is None else parent._root
        self._nodes: list[onnx.NodeProto] = []
        if parent is None:
            self._constants: dict[str, onnx.TensorProto] = {}
            self._live: list[onnx.ValueInfoProto] = []
            self._count = 0

    def _name(self, kind: str) -> str:
        self._root._count += 1
        return f"recall/{kind}.{self._root._count}"

    def held(self, values: "Array", name: str = "") -> str:
        """An initializer of the graph."""
        name = name or self._name("held")
        values = np.asarray(values, order="C")
        self._root._constants[name] = self._onnx.numpy_helper.from_array(values, name)
        return name

    def live(self, name: str, values: "Array") -> str:
        """An initializer that a run may be fed others for, with another number of rows.

        ONNX lets an initializer be an input as well; what a run is not fed is as it was written.
        """
        self.held(values, name)
        number = self._root._constants[name].data_type
        shape = [f"{name}/rows", *values.shape[1:]]
        value = self._onnx.helper.make_tensor_value_info(name, number, shape)
        self._root._live.append(value)
        return name

    def ints(self, *values: int) -> str:
        """An int64 vector."""
        return self.held(np.array(values, np.int64), f"recall/ints.{'.'.join(map(str, values))}")

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one output; returns its name."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node; returns the names of its outputs."""
        stem = self._name(kind)
        names = (stem, *(f"{stem}.{i}" for i in range(1, outputs)))
        make = self._onnx.helper.make_node
        self._nodes.append(make(kind, inputs, names, name=stem, domain=domain, **attributes))
        return names

    def scan(
        self,
        inputs: Sequence[tuple[str, str]],
        body: "Body",
        states: Sequence[tuple[str, str]] = (),
        shapes: Sequence[Sequence[str | int | None]] = (),
    ) -> tuple[str, ...]:
        """Run a body over the first dimension of some tensors; what it gives is stacked.

        Args:
            inputs: name and element type of each.
            body: is called with a child of this, the names of the states and those of one slice of
                each input; answers the name and the element type of each state for the next slice,
                then of each result.
            states: what the first slice finds, name and element type of each.
            shapes: of one slice of each input, where they are known; free dimensions of one name
                are of one size in the whole graph. A runtime reuses memory where it knows shapes
                to be the same.
        """
        helper = self._onnx.helper
        child = Nodes(self)
        given = [*states, *inputs]
        names = [self._name("state" if i < len(states) else "slice") for i in range(len(given))]
        results = body(child, *names)
        known = dict(enumerate(shapes, len(states)))
        graph = helper.make_graph(
            child._nodes,
            "body",
            [
                helper.make_tensor_value_info(s, ONNX_TYPE[t], known.get(i))
                for i, (s, (_, t)) in enumerate(zip(names, given, strict=True))
            ],
            [_loose(helper, name, kind) for name, kind in results],
        )
        outputs = self.ops(
            "Scan",
            *(name for name, _ in given),
            outputs=len(results),
            body=graph,
            num_scan_inputs=len(inputs),
        )
        return outputs[len(states) :]

    def either(self, condition: str, one: "Way", other: "Way") -> tuple[str, ...]:
        """What one of two ways gives; only that one runs.

        Args:
            condition: a bool of one element.
            one: adds the nodes where it holds; answers the tensors.
            other: adds those where it does not; answers as many.
        """
        helper, branches, count = self._onnx.helper, dict[str, Any](), 0
        for name, way in (("then_branch", one), ("else_branch", other)):
            child = Nodes(self)
            values = [helper.make_empty_tensor_value_info(each) for each in way(child)]
            branches[name] = helper.make_graph(child._nodes, name, [], values)
            count = len(values)
        return self.ops("If", condition, outputs=count, **branches)

    def placed(self, graph: Graph, inputs: Mapping[str, str]) -> dict[str, str]:
        """Add the nodes of a graph, also inside of a body; the names of what it gives, by its own.

        Args:
            graph: with the operators of ONNX alone.
            inputs: a tensor for each of its inputs.
        """
        whole = graph.proto.graph
        assert all(node.domain in ("", "ai.onnx.ml") for node in whole.node), "no other is imported"
        stem = self._name("graph")
        graphs, names = [whole], {"": "", **inputs}
        for inner in graphs:  # grows by the graphs inside of nodes
            taken = [*inner.input, *inner.initializer]
            given = (name for node in inner.node for name in node.output)
            for name in (*(value.name for value in taken), *given):
                names.setdefault(name, f"{stem}/{name}")
            for node in inner.node:
                graphs.extend(a.g for a in node.attribute if a.HasField("g"))
        for inner in graphs:
            for node in inner.node:
                node.name = f"{stem}/{node.name}"
                node.input[:] = [names[name] for name in node.input]
                node.output[:] = [names[name] for name in node.output]
            for value in (*inner.input, *inner.output, *inner.initializer):
                value.name = names[value.name]
        self._root._constants.update({tensor.name: tensor for tensor in whole.initializer})
        self._nodes.extend(whole.node)
        return {name: names[name] for name in graph.outputs.names}

    def build(self, inputs: Sequence[Field], outputs: Sequence[tuple[Field, str]]) -> Graph:
        """The graph.

        Raises:
            ValueError: it is larger than a graph can be.
        """
        helper = self._onnx.helper
        size = sum(tensor.ByteSize() for tensor in self._constants.values())
        if size > MOST_BYTES:
            raise ValueError(
                f"the served graph: found {size / 2**30:.1f} GiB of weights, allowed: 2 GiB. Fewer "
                "users (Index(size=…)), factors or neighbours make it smaller."
            )
        ends = [helper.make_node("Identity", [name], [field.name]) for field, name in outputs]
        graph = helper.make_graph(
            [*self._nodes, *ends],
            "recall",
            [*(_value(helper, field) for field in inputs), *self._live],
            [_value(helper, field) for field, _ in outputs],
            list(self._constants.values()),
        )
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
        return Graph.from_proto(model)


Way = Callable[["Nodes"], Sequence[str]]
"""Adds nodes; answers the tensors that they give."""
Body = Any
"""``(nodes, *states, *slices) -> [(tensor, element type), …]``."""


def _value(helper: Any, field: Field) -> "onnx.ValueInfoProto":
    free = enumerate(field.shape)
    shape = ["rows", *(_free(field, i) if n is None else n for i, n in free)]
    return helper.make_tensor_value_info(field.name, field.onnx, shape)


def _free(field: Field, number: int) -> str:
    """The name of a free dimension; of a text's bytes it says how many are read."""
    if field.name.endswith(BYTES_SUFFIX):
        return f"{field.name.removesuffix(BYTES_SUFFIX)}_bytes_max_{MOST_TEXT}"
    return f"{field.name}_{number}"


def _loose(helper: Any, name: str, kind: str) -> "onnx.ValueInfoProto":
    """A value of any shape."""
    return helper.make_tensor_value_info(name, ONNX_TYPE[kind], None)
