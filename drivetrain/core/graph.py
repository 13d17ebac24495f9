"""An ONNX model as a value: run it, join it, name its digest; only this file knows its opset."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from drivetrain.core.batch import Array, Batch, feed
from drivetrain.core.durable import write
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.need import need
from drivetrain.core.schema import ONNX_TYPE, Dtype, Field, Schema

if TYPE_CHECKING:
    import onnx

OPSET = 20
ML_OPSET = 4
IR_VERSION = 10
"""What every graph of a bundle is written in: graphs of different versions do not join."""

_DTYPE: Mapping[int, Dtype] = {
    number: cast(Dtype, name) for name, number in ONNX_TYPE.items() if name != "timestamp"
}
_ORT_DTYPE: Mapping[str, Dtype] = {
    "tensor(string)": "string",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": cast(Dtype, name) for name in ONNX_TYPE},
}


@dataclass(frozen=True)
class Graph:
    """An ONNX model: named inputs to named outputs, the first dimension of each is the rows.

    Attributes:
        model: the serialized ``ModelProto``.
    """

    model: bytes

    @classmethod
    def load(cls, path: Path) -> "Graph":
        """Read a ``.onnx`` file (weights inside; external data is not followed)."""
        return cls(path.read_bytes())

    @classmethod
    def from_proto(cls, model: "onnx.ModelProto") -> "Graph":
        """A graph from an ONNX model of any opset up to ours, brought to ours and checked.

        Raises:
            ValueError: the model is not valid ONNX, or newer than this package writes.
        """
        onnx = need("onnx", "train")
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        if copy.functions:
            copy = need("onnx.inliner", "train").inline_local_functions(copy)
        model = _to_our_opset(copy)
        model.ir_version = IR_VERSION
        del model.graph.value_info[:]  # stale shapes break the quantizer; run time infers its own
        _forget_origin(model)
        try:
            onnx.checker.check_model(model)
        except onnx.checker.ValidationError as error:
            raise ValueError(f"the model is not valid ONNX: {error}") from None
        return cls(model.SerializeToString(deterministic=True))

    def save(self, path: Path) -> None:
        """Write the model to ``path`` atomically."""
        write(path, self.model)

    @property
    def proto(self) -> "onnx.ModelProto":
        """A fresh ``ModelProto`` that the caller may change."""
        return need("onnx", "train").load_model_from_string(self.model)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the model, hexadecimal."""
        return hashlib.sha256(self.model).hexdigest()

    @cached_property
    def inputs(self) -> Schema:
        """The graph's inputs, without the dimension of the rows."""
        graph = self.proto.graph
        initial = {tensor.name for tensor in graph.initializer}
        return _schema([v for v in graph.input if v.name not in initial])

    @cached_property
    def live(self) -> frozenset[str]:
        """The initializers that are inputs as well: a run may be fed others for them."""
        graph = self.proto.graph
        return frozenset({v.name for v in graph.input} & {t.name for t in graph.initializer})

    @cached_property
    def outputs(self) -> Schema:
        """The graph's outputs, without the dimension of the rows."""
        return _schema(self.proto.graph.output)

    def session(self, threads: int = 0) -> "Session":
        """Load the graph into ONNX Runtime; ``threads`` 0 takes one for each core."""
        return Session(self.model, threads=threads)

    def run(self, batch: Batch, outputs: Sequence[str] | None = None) -> Batch:
        """Run once over a batch; hold a :meth:`session` to run more than once."""
        return self.session().run(batch, outputs)

    def join(self, after: "Graph", keep: Sequence[str] = ()) -> "Graph":
        """This graph followed by ``after``: outputs feed the inputs of the same name.

        Args:
            after: its inputs are outputs of this graph, or raw inputs of the joined one.
            keep: outputs of this graph that stay outputs of the joined one.

        Raises:
            ValueError: nothing joins, a tensor has different types on the two sides, ``keep``
                names no output, or an output would be there twice.
        """
        shared = self._shared(after)
        for name in keep:
            if name not in self.outputs:
                raise unknown("output", name, self.outputs.names, "keep")
        twice = {*keep, *shared, *self.inputs.names} & set(after.outputs.names)
        twice |= self.live & after.live
        if twice:
            raise ValueError(
                f"a joined graph has each tensor once; found twice: {', '.join(sorted(twice))}; "
                "give one of them another name."
            )
        model = self.proto
        wanted = [value for value in model.graph.output if value.name in {*keep, *shared}]
        kept = [value for value in wanted if value.name in keep]
        del model.graph.output[:]
        model.graph.output.extend(wanted)
        model = _apart(model, {*after.inputs.names, *after.outputs.names})
        second = _prefixed(after.proto, _free_prefix(model.graph))
        graph = model.graph
        graph.node.extend(second.graph.node)
        graph.initializer.extend(second.graph.initializer)
        graph.sparse_initializer.extend(second.graph.sparse_initializer)
        present = {value.name for value in graph.input}
        graph.input.extend(
            v for v in second.graph.input if v.name not in shared and v.name not in present
        )
        del graph.output[:]
        graph.output.extend(second.graph.output)
        graph.output.extend(kept)
        domains = {entry.domain for entry in model.opset_import}
        model.opset_import.extend(e for e in second.opset_import if e.domain not in domains)
        return Graph.from_proto(model)

    def _shared(self, after: "Graph") -> set[str]:
        """The outputs that feed inputs of ``after``."""
        shared = {name for name in after.inputs.names if name in self.outputs}
        if not shared:
            raise ValueError(
                "graphs join where an output has an input's name; found outputs "
                f"{list(self.outputs.names)} and inputs {list(after.inputs.names)}."
            )
        ours = {f.name: f for f in (*self.inputs, *self.outputs)}
        for field in after.inputs:
            left = ours.get(field.name, field)
            if left.dtype != field.dtype:
                raise ValueError(
                    f"tensor {field.name!r}: found {left.dtype}, allowed: {field.dtype}."
                )
        return shared


def _tensors(graph: "onnx.GraphProto") -> set[str]:
    """Every name inside a graph, but those of its inputs: nodes, what they give, initializers."""
    given = {name for node in graph.node for name in (*node.output, node.name)}
    return given | {tensor.name for tensor in graph.initializer}


def _apart(model: "onnx.ModelProto", names: set[str]) -> "onnx.ModelProto":
    """The model, its inner tensors renamed if one is called as the other graph's ends are."""
    outer = {value.name for value in (*model.graph.input, *model.graph.output)}
    if not names & (_tensors(model.graph) - outer):
        return model
    return _prefixed(model, _free_prefix(model.graph))


def _prefixed(model: "onnx.ModelProto", prefix: str) -> "onnx.ModelProto":
    """The model, changed in place: all but its inputs and outputs have a longer name.

    ``onnx.compose.add_prefix`` leaves what a body (of a ``Scan``) reads from outside as it was.
    """
    outer = {value.name for value in (*model.graph.input, *model.graph.output)}
    graphs = list(_nested(model.graph))
    own = {name for graph in graphs for name in _tensors(graph)}
    own |= {value.name for graph in graphs[1:] for value in graph.input}
    own |= {sparse.values.name for graph in graphs for sparse in graph.sparse_initializer}
    longer = {name: prefix + name for name in own - outer - {""}}
    for graph in graphs:
        for node in graph.node:
            node.name = prefix + node.name if node.name else ""
            node.input[:] = [longer.get(name, name) for name in node.input]
            node.output[:] = [longer.get(name, name) for name in node.output]
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.name = longer.get(value.name, value.name)
        for sparse in graph.sparse_initializer:
            sparse.values.name = longer.get(sparse.values.name, sparse.values.name)
    return model


def _nested(graph: "onnx.GraphProto") -> "Iterator[onnx.GraphProto]":
    """A graph and all that are inside of its nodes, the outermost first."""
    graphs = [graph]
    for found in graphs:  # grows by the graphs inside of nodes
        yield found
        for node in found.node:
            graphs.extend(a.g for a in node.attribute if a.HasField("g"))
            graphs.extend(inner for a in node.attribute for inner in a.graphs)


def _free_prefix(graph: "onnx.GraphProto") -> str:
    """A prefix that no name in a graph has."""
    taken = {name.partition("/")[0] for name in _tensors(graph)}
    depth = 1
    while f"join{depth}" in taken:
        depth += 1
    return f"join{depth}/"


def _forget_origin(model: "onnx.ModelProto") -> None:
    """Drop what tells where a model was made: stack traces with file names would be digested."""
    del model.metadata_props[:]
    for graph in _nested(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        for value in (*graph.input, *graph.output):
            value.doc_string = ""
            del value.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]


def _to_our_opset(model: "onnx.ModelProto") -> "onnx.ModelProto":
    onnx = need("onnx", "train")
    limits = {"": OPSET, "ai.onnx": OPSET, "ai.onnx.ml": ML_OPSET}
    imports: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        imports[domain] = max(entry.version, imports.get(domain, 0))
    for domain, version in imports.items():
        limit = limits.get(domain)
        if limit is not None and version > limit:
            raise ValueError(
                f"opset of domain {domain or 'ai.onnx'!r}: found {version}, allowed: {limit} or "
                "less; export the model again with that opset."
            )
    if imports.get("", OPSET) < OPSET:
        model = onnx.version_converter.convert_version(model, OPSET)
    if "ai.onnx.ml" in imports:  # its operators kept their meaning up to our version
        imports["ai.onnx.ml"] = ML_OPSET
    imports[""] = OPSET
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in sorted(imports.items()))
    return model


def _schema(values: "Sequence[onnx.ValueInfoProto]") -> Schema:
    fields: list[Field] = []
    for value in values:
        tensor = value.type.tensor_type
        if tensor.elem_type not in _DTYPE:
            kind = str(value.type).strip().replace("\n", " ")
            raise wrong(f"tensor {value.name!r}", kind, "dense tensors of " + ", ".join(ONNX_TYPE))
        shape = tuple(
            d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim[1:]
        )
        fields.append(Field(value.name, _DTYPE[tensor.elem_type], shape))
    return Schema(tuple(fields))


class Session:
    """A graph loaded into ONNX Runtime: batches in, batches out. Safe to use from threads.

    Args:
        model: the serialized model, or the path of a file that holds it.
        threads: of one run; 0 takes one for each core.
        configure: is given the ``SessionOptions`` to change before the graph is loaded.
        providers: the execution providers that may take nodes, the first that can takes each.

    Attributes:
        placement: where it runs, by the name that a site gives it.
    """

    placement = "cpu"

    def __init__(
        self,
        model: bytes | str,
        threads: int = 0,
        *,
        configure: Callable[[Any], object] | None = None,
        providers: Sequence[Any] = ("CPUExecutionProvider",),
    ) -> None:
        ort = need("onnxruntime", "serve")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if configure is not None:
            configure(options)
        self._session: Any = ort.InferenceSession(  # onnxruntime ships no types
            model, options, providers=list(providers)
        )
        # It would keep the bytes, beside the weights that it made of them, for a second attempt
        # on other providers; what does not load as it was asked for is an error here.
        self._session.disable_fallback()
        self._session._model_bytes = None
        self.inputs: tuple[tuple[str, tuple[int | str | None, ...]], ...] = tuple(
            (node.name, tuple(node.shape)) for node in self._session.get_inputs()
        )
        """Each input's name and shape; a free dimension has a name or None."""
        self.live: frozenset[str] = frozenset(
            node.name for node in self._session.get_overridable_initializers()
        )
        """Initializers that a run may be fed others for; what it is not fed stays as written."""
        self.outputs: Schema = _ort_schema(self._session.get_outputs())
        self.input_schema: Schema = _ort_schema(self._session.get_inputs())

    def run(self, batch: Batch, outputs: Sequence[str] | None = None) -> Batch:
        """Run over all rows of a batch.

        Raises:
            ValueError: the batch lacks a column that the graph takes, or has one of another type.
        """
        names = list(self.outputs.names if outputs is None else outputs)
        feeds = {name: feed(batch, name, shape) for name, shape in self.inputs}
        try:
            arrays: list[Array] = self.raw(feeds, names)
        except Exception:
            self._blame(feeds)
            raise
        return Batch(dict(zip(names, arrays, strict=True)))

    def _blame(self, feeds: Mapping[str, Array]) -> None:
        """Name the column that was at fault, where it was one."""
        for field in self.input_schema:
            found = feeds[field.name]
            if found.dtype.name != field.numpy:
                raise wrong(f"column {field.name!r}", found.dtype.name, field.dtype)
            inner = found.shape[1:]
            if len(inner) != len(field.shape) or any(
                n not in (None, m) for n, m in zip(field.shape, inner, strict=True)
            ):
                raise wrong(f"column {field.name!r}", inner, f"rows of shape {field.shape}")

    def raw(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        """Run over arrays that are already as the graph takes them: the hot path."""
        return self._session.run(outputs, feeds)

    @property
    def bindable(self) -> bool:
        """Whether :meth:`bind` is to be had: the graph runs where numpy's memory is."""
        return self.placement == "cpu"

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Any:
        """What :meth:`run_bound` takes: a run that reads and writes these arrays' own memory.

        Args:
            inputs: contiguous arrays of the graph's types; whoever holds the result holds them.
            outputs: the same, of the shapes that the run gives.
        """
        binding = self._session.io_binding()
        for name, array in inputs.items():
            place = (array.dtype, array.shape, array.ctypes.data)
            binding.bind_input(name, "cpu", 0, *place)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding._iobinding

    def run_bound(self, binding: Any) -> None:
        """Run over what is bound, once at a time; the binding says where the outputs go."""
        self._session._sess.run_with_iobinding(binding, None)

    def assignment(self) -> dict[str, list[str]]:
        """The operators that each execution provider took; recorded only if the options of the
        session say ``session.record_ep_graph_assignment_info``."""
        found: dict[str, list[str]] = {}
        for part in self._session.get_provider_graph_assignment_info():
            found.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
        return found


def _ort_schema(nodes: Sequence[Any]) -> Schema:
    fields: list[Field] = []
    for node in nodes:
        if node.type not in _ORT_DTYPE:
            raise wrong(f"tensor {node.name!r}", node.type, ", ".join(_ORT_DTYPE))
        shape = tuple(n if isinstance(n, int) else None for n in node.shape[1:])
        fields.append(Field(node.name, _ORT_DTYPE[node.type], shape))
    return Schema(tuple(fields))
