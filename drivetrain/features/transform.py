"""Batches of raw columns to the tensors of the feature graph, each distinct text computed once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

from drivetrain.core.batch import BYTES_SUFFIX, Array, Batch, Categorical
from drivetrain.core.graph import Graph, Session
from drivetrain.core.need import need
from drivetrain.core.schema import FeatureSchema
from drivetrain.features.builder import ROWS

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Transform:
    """Runs a feature graph over batches; the result is that of the graph, bit for bit.

    A text column that a batch holds as a :class:`Categorical` names each distinct value once.
    What the graph computes from that column alone is then computed for the distinct values and
    gathered by the codes: features are row-wise, so nothing else can come out. Where less than
    half of the values repeat it would not pay, and the graph runs as it is.

    Attributes:
        graph: raw columns to the tensors of ``features``.
        features: what the graph gives.
        threads: ONNX Runtime's; 0 takes one for each core.
    """

    graph: Graph
    features: FeatureSchema
    threads: int = 0

    def run(self, batch: Batch) -> Batch:
        """The tensors of ``features``, for all rows of a batch.

        Raises:
            ValueError: the batch lacks a column that the graph takes.
        """
        repeated = {name for name in self._texts if _repeats(batch.columns.get(name))}
        outputs = self.features.tensors.names
        if not repeated:
            return self._whole.run(batch, outputs)
        tensors: dict[str, Array] = {}
        for column, part in self._parts.items():
            held = batch.column(column)
            if column in repeated:
                assert isinstance(held, Categorical)
                distinct = part.run(Batch({column: held.values}))
                tensors |= {name: distinct[name][held.codes] for name in distinct.columns}
            else:
                every = part.run(Batch({column: held}))
                tensors |= {name: every[name] for name in every.columns}
        if self._rest:
            rest = self._rest.run(batch.with_columns(tensors))
            tensors |= {name: rest[name] for name in rest.columns}
        return Batch({name: tensors[name] for name in outputs})

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        """The columns that are texts, as the batch names them."""
        return tuple(_text_columns(self._whole))

    @cached_property
    def _whole(self) -> Session:
        return self.graph.session(self.threads)

    @cached_property
    def _cut(self) -> "tuple[Mapping[str, Graph], Graph | None]":
        return cut(self.graph, _text_columns(self._whole))

    @cached_property
    def _parts(self) -> dict[str, Session]:
        return {column: part.session(self.threads) for column, part in self._cut[0].items()}

    @cached_property
    def _rest(self) -> Session | None:
        rest = self._cut[1]
        return rest.session(self.threads) if rest else None


def _repeats(column: object) -> bool:
    return isinstance(column, Categorical) and 2 * len(column.values) <= len(column)


def _text_columns(session: Session) -> dict[str, set[str]]:
    """For each text column the inputs that carry it: its strings, its bytes or both."""
    columns: dict[str, set[str]] = {}
    for field in session.input_schema:
        if field.dtype == "string" and not field.shape:
            columns.setdefault(field.name, set()).add(field.name)
        elif field.name.endswith(BYTES_SUFFIX):
            columns.setdefault(field.name.removesuffix(BYTES_SUFFIX), set()).add(field.name)
    return columns


def cut(graph: Graph, columns: Mapping[str, set[str]]) -> tuple[dict[str, Graph], Graph | None]:
    """A graph as the parts that depend on one text column alone, and the rest.

    Args:
        graph: the graph to cut.
        columns: for each column the inputs that carry it.

    Returns:
        For each column the part whose outputs, all with the rows first, the rest takes or are
        outputs of the graph; and the rest, None if the parts are all there is.
    """
    onnx = need("onnx", "train")
    model = onnx.shape_inference.infer_shapes(graph.proto)
    values = {v.name: v for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    outputs = {value.name for value in model.graph.output}
    owner = _owners(model, columns)
    while True:
        borders = _borders(model, owner, outputs)
        late = [n.output for n in model.graph.node if _leaves_late(n, borders, values)]
        if not late:
            break
        for name in chain.from_iterable(late):
            del owner[name]
    parts: dict[str, Graph] = {}
    for column, inputs in columns.items():
        nodes = [node for node in model.graph.node if owner.get(node.output[0]) == column]
        leaving = [values[name] for name in borders if owner[name] == column]
        if leaving:
            entering = [value for value in model.graph.input if value.name in inputs]
            parts[column] = _extract(model, nodes, entering, leaving)
    rest = [node for node in model.graph.node if node.output[0] not in owner]
    entering = [*model.graph.input, *(values[name] for name in borders)]
    leaving = [value for value in model.graph.output if value.name not in owner]
    return parts, _extract(model, rest, entering, leaving) if leaving else None


def _owners(model: "onnx.ModelProto", columns: Mapping[str, set[str]]) -> dict[str, str]:
    """For each tensor that some node makes of one column alone, that column."""
    source = {name: column for column, names in columns.items() for name in names}
    constants = {tensor.name for tensor in model.graph.initializer}
    owner: dict[str, str] = {}
    for node in model.graph.node:
        found = {owner.get(n) or source.get(n) for n in _reads(node) if n and n not in constants}
        column = found.pop() if len(found) == 1 else None
        if column is not None:
            owner |= dict.fromkeys(node.output, column)
    return owner


def _reads(node: "onnx.NodeProto") -> set[str]:
    """What a node reads, also from within the bodies of loops and branches."""
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    made = {name for body in bodies for inner in body.node for name in inner.output}
    made |= {value.name for body in bodies for value in (*body.input, *body.initializer)}
    within = set().union(*(_reads(inner) for body in bodies for inner in body.node))
    return set(node.input) | (within - made)


def _borders(
    model: "onnx.ModelProto", owner: Mapping[str, str], outputs: set[str]
) -> dict[str, None]:
    """The owned tensors that other nodes read or that leave the graph, in order."""
    others = [node for node in model.graph.node if node.output[0] not in owner]
    read = outputs.union(*map(_reads, others))
    return dict.fromkeys(name for name in owner if name in read)


def _leaves_late(
    node: "onnx.NodeProto", borders: Mapping[str, None], values: "Mapping[str, onnx.ValueInfoProto]"
) -> bool:
    """Whether a node's result leaves its part without having one entry for each row."""
    return any(name in borders and not _has_rows(values.get(name)) for name in node.output)


def _has_rows(value: "onnx.ValueInfoProto | None") -> bool:
    """Whether a tensor is known to have one entry for each row."""
    dimensions = value.type.tensor_type.shape.dim if value else ()
    return len(dimensions) > 0 and dimensions[0].dim_param == ROWS


def _extract(
    model: "onnx.ModelProto",
    nodes: "list[onnx.NodeProto]",
    inputs: "list[onnx.ValueInfoProto]",
    outputs: "list[onnx.ValueInfoProto]",
) -> Graph:
    """A graph of some of a model's nodes; of the inputs it takes those that they read."""
    helper = need("onnx", "train").helper
    read: set[str] = set().union(*map(_reads, nodes))
    part = helper.make_graph(
        nodes,
        model.graph.name,
        [value for value in inputs if value.name in read],
        outputs,
        [tensor for tensor in model.graph.initializer if tensor.name in read],
    )
    return Graph.from_proto(
        helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
    )
