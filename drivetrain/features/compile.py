"""Features and their fitted statistics to one ONNX graph and the schema of what it gives."""

from collections.abc import Sequence
from typing import Any, cast

from drivetrain.core.errors import wrong
from drivetrain.core.graph import Graph
from drivetrain.core.measured import Fitted
from drivetrain.core.schema import FeatureField, FeatureSchema, Kind, Schema
from drivetrain.core.seams import Feature
from drivetrain.features.builder import Builder
from drivetrain.features.column import place


def compile(
    features: Sequence[Feature], schema: Schema, fitted: Fitted, *, together: bool = True
) -> tuple[Graph, FeatureSchema]:
    """One graph of all features: raw columns in, the tensors of the feature schema out.

    Args:
        features: in the order that their columns have within the blocks.
        schema: the raw columns.
        fitted: the value of every statistic that the features ask for.
        together: features of one class share their nodes. Without it each has its own, which
            gives the same tensors to the last bit, more slowly.

    Raises:
        ValueError: a column is absent or of a type that a feature can't take; a statistic was
            not fitted; two features have one name.
    """
    names = [feature.name for feature in features]
    for feature in features:
        if names.count(feature.name) > 1:
            raise ValueError(f"feature {feature.name!r} is declared twice: give one another name=.")
        for column in feature.columns:
            schema.field(column, place(feature))
    fields = FeatureSchema(tuple(_field(feature, schema, fitted) for feature in features))
    graph = Builder(schema)
    made: dict[str, str] = {}
    for kind in ("dense", "index"):
        block = [f for f in features if fields.field(f.name).kind == kind]
        if block:
            made[kind] = _block(graph, block, kind, schema, fitted, fields, together)
    for feature in features:
        if fields.field(feature.name).kind in ("bag", "tensor"):
            made[feature.name] = feature.nodes(graph, schema, fitted)
    return graph.build([(field, made[field.name]) for field in fields.tensors]), fields


def _field(feature: Feature, schema: Schema, fitted: Fitted) -> FeatureField:
    for statistic in feature.statistics():
        if statistic not in fitted:
            raise ValueError(f"{place(feature)} needs {statistic}, which was not fitted.")
    field = feature.field(schema, fitted)
    if field.name != feature.name:
        raise wrong(f"{place(feature)}: the field's name", field.name, repr(feature.name))
    return field


def _block(
    graph: Builder,
    features: Sequence[Feature],
    kind: Kind,
    schema: Schema,
    fitted: Fitted,
    fields: FeatureSchema,
    together: bool,
) -> str:
    """The block ``[rows, width]`` of all features of one kind.

    It grows columns first, group by group, and is brought to the declared order and turned once
    at the end.
    """
    parts: list[str] = []
    order: list[int] = []
    for group in _groups(features, schema, together):
        if hasattr(group[0], "together"):
            parts.append(cast(Any, group[0]).together(graph, group, schema, fitted))
        else:
            parts += [graph.transpose(f.nodes(graph, schema, fitted)) for f in group]
        for feature in group:
            place_in_block = fields.slice(feature.name)
            order += range(place_in_block.start, place_in_block.stop)
    block = graph.concat(parts)
    if order != sorted(order):
        position = [order.index(column) for column in range(len(order))]
        block = graph.op("Gather", block, graph.ints(*position), axis=0)
    return graph.transpose(block)


def _groups(features: Sequence[Feature], schema: Schema, together: bool) -> list[list[Feature]]:
    """Features that compile together; within a group, columns of one type are neighbours."""
    if not together:
        return [[feature] for feature in features]
    groups: dict[type, list[Feature]] = {}
    for feature in features:
        groups.setdefault(type(feature), []).append(feature)
    for group in groups.values():
        group.sort(
            key=lambda f: [(schema.field(c).dtype, len(schema.field(c).shape)) for c in f.columns]
        )
    return list(groups.values())
