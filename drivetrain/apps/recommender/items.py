"""What is known of the items themselves: a table's features, in the order of the catalogue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drivetrain.core.batch import Array, Batch, column_of
from drivetrain.core.schema import FeatureSchema, Schema
from drivetrain.core.seams import SPLITS, Feature, Source
from drivetrain.core.sketch import measure
from drivetrain.features.compile import compile
from drivetrain.features.transform import Transform


@dataclass(frozen=True, eq=False)
class Items:
    """The attributes of all items as a model takes them.

    Attributes:
        count: how many items there are.
        features: what is known of each.
        tensors: ``[items + 1, …]`` each, in the catalogue's order; the last one is of no item.
    """

    count: int
    features: FeatureSchema
    tensors: Mapping[str, Array]

    def __len__(self) -> int:
        return self.count

    @classmethod
    def of(
        cls, catalogue: Array, key: str, table: Source | None, features: Sequence[Feature]
    ) -> "Items":
        """What a table says of the items of a catalogue; of those that it lacks all is missing.

        Args:
            catalogue: the items.
            key: their column in the table.
            table: a row for each item; held in memory.
            features: of the table's columns.

        Raises:
            ValueError: a column is absent or of another type than its feature takes, or an item
                has two rows.
        """
        if table is None or not features:
            return cls(len(catalogue), FeatureSchema(()), {})
        names = dict.fromkeys(column for feature in features for column in feature.columns)
        rows = held(table, table.schema.select([*names]), key, catalogue)
        known = rows.slice(0, len(catalogue))
        fitted = {s: measure(s, known) for feature in features for s in feature.statistics()}
        graph, schema = compile(features, table.schema.select([*names]), fitted)
        found = Transform(graph, schema, threads=1).run(rows)
        return cls(len(catalogue), schema, {n: found[n] for n in schema.tensors.names})


def held(table: Source, schema: Schema, key: str, catalogue: Array) -> Batch:
    """Columns of a table in the order of a catalogue, and behind them a row that lacks all.

    Raises:
        ValueError: the key is absent, or an item has two rows.
    """
    table.schema.field(key, "items")
    wanted = {value: place for place, value in enumerate(catalogue.tolist())}
    nothing = Batch({field.name: column_of([None], field) for field in schema})
    parts, place = [nothing], np.zeros(len(catalogue) + 1, np.int64)
    read = 1
    for split in SPLITS:  # nobody trains on it: whatever part a row is in, it is read
        for batch in table.batches(split):
            parts.append(Batch({name: batch[name] for name in schema.names}))
            for row, value in enumerate(batch[key].tolist(), read):
                at = wanted.get(value)
                if at is None:
                    continue
                if place[at]:
                    raise ValueError(f"items: found two rows of {value!r}, allowed: one each.")
                place[at] = row
            read += len(batch)
    return Batch.concat(parts).take(place)
