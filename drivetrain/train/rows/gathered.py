"""Trained rows in one place: the tables of a model that is exported hold what training saw."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from drivetrain.core.errors import wrong
from drivetrain.train.rows.held_rows import TableShape
from drivetrain.train.rows.remote_embedding import SeenEmbedding
from drivetrain.train.rows.snapshots import RowSnapshots

MOST_BYTES = (1 << 31) - (1 << 24)
"""Of the tables of one graph: an ONNX model is one protobuf message, which ends at 2 GiB."""


def gathered(
    snapshots: RowSnapshots, shapes: Sequence[TableShape], paths: Sequence[Path]
) -> list[nn.Module]:
    """A module for each table, read piece by piece.

    A table all of whose rows exist is an ``nn.Embedding``. Of others only the rows that training
    saw are held: an id that it never saw gets the mean of what rows begin with, as in validation,
    instead of noise that nobody trained.

    Args:
        snapshots: of the training.
        shapes: its tables.
        paths: the final files of all processes; of none, all ids were never seen.

    Raises:
        ValueError: the rows that were seen don't fit into one graph.
    """
    counts = [sum(snapshots.count(p, n) for p in paths) for n in range(len(shapes))]
    size = sum(
        4 * (1 + count) * shape.dim + (4 * shape.rows if count < shape.rows else 0)
        for shape, count in zip(shapes, counts, strict=True)
    )
    if size > MOST_BYTES:
        largest = max(range(len(shapes)), key=lambda n: counts[n] * shapes[n].dim)
        shape = shapes[largest]
        raise wrong(
            f"table {shape.name!r}, of which training saw {counts[largest]} rows of {shape.dim}, "
            "and its like, in one graph",
            f"{size >> 20} MiB",
            f"{MOST_BYTES >> 20} MiB; take a smaller dim, or hash into fewer ids",
        )
    return [
        _table(snapshots, shape, number, count, paths)
        for number, (shape, count) in enumerate(zip(shapes, counts, strict=True))
    ]


def _table(
    snapshots: RowSnapshots, shape: TableShape, number: int, count: int, paths: Sequence[Path]
) -> nn.Module:
    whole = count == shape.rows
    table = np.empty((count + (not whole), shape.dim), np.float32)
    places = np.zeros(0 if whole else shape.rows, np.int32)
    if not whole:
        table[0] = shape.start.mean
    first = 1
    for path in paths:
        for some in snapshots.rows(path, number):
            if whole:
                table[some.ids] = some.values
                continue
            last = first + len(some.ids)
            table[first:last] = some.values
            places[some.ids] = np.arange(first, last, dtype=np.int32)
            first = last
    if whole:
        return nn.Embedding(*table.shape, _weight=torch.from_numpy(table))
    return SeenEmbedding(torch.from_numpy(table), torch.from_numpy(places))
