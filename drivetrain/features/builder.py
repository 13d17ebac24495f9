"""A small builder of ONNX graphs that declares raw columns as they are first used."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from drivetrain.core.batch import BYTES_SUFFIX, PIXELS_SUFFIX
from drivetrain.core.graph import IR_VERSION, ML_OPSET, OPSET, Graph
from drivetrain.core.need import need
from drivetrain.core.schema import ONNX_TYPE, Dtype, Field, Schema

if TYPE_CHECKING:
    import onnx

ROWS = "rows"
"""The name of the first dimension of every input and output."""
ML = "ai.onnx.ml"
EXTENSIONS = "ai.onnx.contrib"
_VERSION = {"": OPSET, ML: ML_OPSET, EXTENSIONS: 1}


class Builder:
    """Collects nodes; equal nodes over equal inputs are one.

    Tensors are known by their names. A method that makes one returns its name.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._onnx = need("onnx", "train")
        self._inputs: dict[str, onnx.ValueInfoProto] = {}
        self._limits: dict[str, int] = {}
        self._views: dict[str, tuple[str, int]] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._known: dict[bytes, tuple[str, ...]] = {}
        self._constants: dict[bytes, onnx.TensorProto] = {}
        self._domains: set[str] = {""}

    # -- what enters ---------------------------------------------------------------------------

    def column(self, name: str) -> str:
        """A raw column ``[rows, *shape]`` of the type that the schema gives it.

        Raises:
            ValueError: there is no such column, or it holds bytes (see :meth:`bytes`).
        """
        field = self.schema.field(name)
        if field.dtype == "bytes":
            raise ValueError(f"column {name!r} holds bytes: a graph takes them as a matrix.")
        if name not in self._inputs:
            free = [f"{name}_{i}" if n is None else n for i, n in enumerate(field.shape)]
            self._inputs[name] = self._onnx.helper.make_tensor_value_info(
                name, field.onnx, [ROWS, *free]
            )
        return name

    def bytes(self, name: str, limit: int) -> str:
        """The first ``limit`` UTF-8 bytes of a string (or bytes) column, ``[rows, longest]``.

        uint8, zero-padded to the longest of the batch, which may be shorter than ``limit``. The
        input is as wide as the feature that reads most of it needs; the others read a slice.
        """
        self.schema.field(name)
        source = name + BYTES_SUFFIX
        self._limits[source] = max(limit, self._limits.get(source, 0))
        self._inputs.setdefault(source, self._onnx.ValueInfoProto())  # keeps the order of use
        view = self.op("Slice", source, self.ints(0), self.ints(limit), self.ints(1))
        self._views[view] = (source, limit)
        return view

    def pixels(self, name: str, shape: tuple[int, int, int]) -> str:
        """A column of encoded images, decoded: uint8 ``[rows, height, width, channels]``.

        Raises:
            ValueError: another feature takes them in another size, which one input can't have.
        """
        self.schema.field(name)
        source = name + PIXELS_SUFFIX
        value = self._onnx.helper.make_tensor_value_info(source, ONNX_TYPE["uint8"], [ROWS, *shape])
        if self._inputs.setdefault(source, value) != value:
            raise ValueError(f"column {name!r}: found two features that take it in other sizes.")
        return source

    # -- constants -----------------------------------------------------------------------------

    def constant(self, values: Any, dtype: Dtype) -> str:
        """A constant tensor; equal constants are one."""
        array = np.asarray(values, dtype=object if dtype == "string" else dtype)
        tensor = self._onnx.numpy_helper.from_array(array)
        key = tensor.SerializeToString(deterministic=True)
        if key not in self._constants:
            tensor.name = f"features/constant.{len(self._constants)}"
            self._constants[key] = tensor
        return self._constants[key].name

    def ints(self, *values: int) -> str:
        """A constant int64 vector, for axes and shapes."""
        return self.constant(values, "int64")

    # -- nodes ---------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one output; returns the output's name."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node of several outputs, unless an equal one is there; returns their names."""
        node = self._onnx.helper.make_node(kind, inputs, [], domain=domain, **attributes)
        key = node.SerializeToString(deterministic=True)
        if key not in self._known:
            stem = f"features/{kind}.{len(self._nodes)}"
            names = (stem, *(f"{stem}.{i}" for i in range(1, outputs)))
            node.name = stem
            node.output.extend(names)
            self._nodes.append(node)
            self._known[key] = names
            self._domains.add(domain)
        return self._known[key]

    def cast(self, tensor: str, dtype: Dtype) -> str:
        """The tensor with another element type."""
        return self.op("Cast", tensor, to=ONNX_TYPE[dtype])

    def concat(self, tensors: Sequence[str], axis: int = 0) -> str:
        """Tensors joined along an axis; a single one is itself."""
        return tensors[0] if len(tensors) == 1 else self.op("Concat", *tensors, axis=axis)

    def stack(self, vectors: Sequence[str]) -> str:
        """Vectors ``[rows]`` as a matrix ``[len(vectors), rows]``."""
        return self.op("Reshape", self.concat(vectors), self.ints(len(vectors), -1))

    def transpose(self, matrix: str) -> str:
        """``[rows, width]`` to ``[width, rows]`` and back."""
        return self.op("Transpose", matrix, perm=[1, 0])

    # -- what leaves ---------------------------------------------------------------------------

    def build(self, outputs: Sequence[tuple[Field, str]]) -> Graph:
        """The graph whose outputs are the given tensors under the names of the fields.

        Raises:
            ValueError: an output has the name of a raw column that the graph takes.
        """
        helper = self._onnx.helper
        nodes = self._without_full_slices()
        for field, _ in outputs:
            if field.name in self._inputs:
                raise ValueError(
                    f"{field.name!r} is both a raw column and an output of the feature graph: "
                    "give the column or the feature another name."
                )
        nodes += self._named(nodes, [(field.name, tensor) for field, tensor in outputs])
        for name, limit in self._limits.items():
            dimension = f"{name.removesuffix(BYTES_SUFFIX)}_bytes_max_{limit}"
            value = helper.make_tensor_value_info(name, ONNX_TYPE["uint8"], [ROWS, dimension])
            self._inputs[name] = value
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes,
            "features",
            list(self._inputs.values()),
            [helper.make_tensor_value_info(f.name, f.onnx, [ROWS, *f.shape]) for f, _ in outputs],
            [tensor for tensor in self._constants.values() if tensor.name in used],
        )
        imports = [helper.make_opsetid(d, _VERSION[d]) for d in sorted(self._domains)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
        return Graph.from_proto(model)

    def _without_full_slices(self) -> "list[onnx.NodeProto]":
        """Copies of the nodes; a slice as wide as its input is the input itself."""
        full = {
            view: source
            for view, (source, limit) in self._views.items()
            if limit == self._limits[source]
        }
        nodes: list[onnx.NodeProto] = []
        for known in self._nodes:
            if known.output[0] in full:
                continue
            node = type(known)()
            node.CopyFrom(known)
            node.input[:] = [full.get(name, name) for name in known.input]
            nodes.append(node)
        return nodes

    def _named(
        self, nodes: "list[onnx.NodeProto]", outputs: Sequence[tuple[str, str]]
    ) -> "list[onnx.NodeProto]":
        """Give outputs their names; returns a node for each that has to be a copy.

        A tensor that nothing else reads is given the name where it is made.
        """
        readers = [name for node in nodes for name in node.input]
        readers += [tensor for _, tensor in outputs]
        makers = {name: (node, i) for node in nodes for i, name in enumerate(node.output)}
        copies: list[onnx.NodeProto] = []
        for name, tensor in outputs:
            if tensor in makers and readers.count(tensor) == 1:
                node, position = makers[tensor]
                node.output[position] = name
            else:
                source = self._views.get(tensor, (tensor, 0))[0] if tensor not in makers else tensor
                copies.append(self._onnx.helper.make_node("Identity", [source], [name], name=name))
        return copies
