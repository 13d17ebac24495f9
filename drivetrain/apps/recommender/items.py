"""What is known of the items themselves: a table's features, in the order of the catalogue."""

from collections.abc import Sequence

import numpy as np

from drivetrain.core.batch import Array, Batch
from drivetrain.core.measured import measure
from drivetrain.core.schema import FeatureSchema
from drivetrain.core.seams import Feature, Source
from drivetrain.core.values import column_of
from drivetrain.features.compile import compile
from drivetrain.features.transform import Transform
from drivetrain.models.list_ranking import Items
from drivetrain.train.recall.attributes import key_field, rows_of

WHERE = "Recommender.items"


def described(
    catalogue: Array, key: str, table: Source | None, features: Sequence[Feature]
) -> Items:
    """What a table says of the items of a catalogue; of those that it lacks all is missing.

    Args:
        catalogue: the items.
        key: their column in the table.
        table: a row for each item; held in memory.
        features: of the table's columns.

    Raises:
        ValueError: a column is absent or of another type than its feature takes, or an item has
            two rows.
    """
    if table is None or not features:
        return Items(len(catalogue), FeatureSchema(()), {})
    names = [*dict.fromkeys(column for feature in features for column in feature.columns)]
    rows = held(table, names, key, catalogue)
    known = rows.slice(0, len(catalogue))
    fitted = {s: measure(s, known) for feature in features for s in feature.statistics()}
    graph, schema = compile(features, table.schema.select(names), fitted)
    found = Transform(graph, schema, threads=1).run(rows)
    return Items(len(catalogue), schema, {n: found[n] for n in schema.tensors.names})


def held(table: Source, names: Sequence[str], key: str, catalogue: Array) -> Batch:
    """Columns of a table in the order of a catalogue, and behind them a row that lacks all.

    Raises:
        ValueError: a column is absent, the key is of another type than the items, or an item has
            two rows.
    """
    key_field(table, key, catalogue, WHERE)
    schema = table.schema.select(dict.fromkeys((key, *names)), WHERE)
    keys, rows = rows_of(table, schema, key, WHERE)
    place = {item: row for row, item in enumerate(keys, 1)}
    nothing = Batch({field.name: column_of([None], field) for field in schema})
    at = [place.get(item, 0) for item in (*catalogue.tolist(), None)]
    return Batch.concat([nothing, rows]).take(np.array(at))
