"""Rows of users and the items that they had, in a seeded order, as a strategy trains on them."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from drivetrain.core.batch import Array, Batch, Categorical
from drivetrain.core.metric import Emit, Progress
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Examples, Order, Shard, Source, Split
from drivetrain.train.recall.interactions import ROWS
from drivetrain.train.sampled_softmax import WEIGHT

ITEM, HISTORY = "pairs/item", "pairs/history"
"""The tensors beside the features: an item is its place in the catalogue and 1, none is 0."""


class Pairs:
    """Examples whose features are those of others, the row's item and its history.

    They lie in nameless files, narrow, in the order of the events: 4 bytes for each number. What
    is read of them is what a batch takes.

    Args:
        source: whose features they are.
        extra: the tensors of items.
        weighted: whether rows have weights.
        columns: of each split, by the names of tensors and targets; rows first.
    """

    def __init__(
        self,
        source: Examples,
        extra: tuple[FeatureField, ...],
        weighted: bool,
        columns: Mapping[Split, Mapping[str, Array]],
    ) -> None:
        self._source = source
        self._columns = columns
        self.features = FeatureSchema((*source.features.features, *extra))
        self.targets = Schema((Field(WEIGHT, "float32"),) if weighted else ())
        self._types = {field.name: field.numpy for field in (*self.features.tensors, *self.targets)}

    @property
    def events(self) -> Source:
        """The source underneath."""
        return self._source.events

    def rows(self, split: Split) -> int:
        """How many rows a split has: those with an item of the catalogue."""
        return len(self._columns[split][ITEM])

    def counts(self, items: int) -> Array:
        """In how many training rows each item is, int64 ``[items]``."""
        return np.bincount(self._columns["train"][ITEM][:, 0] - 1, minlength=items)

    def batches(
        self,
        split: Split,
        shard: Shard = Shard(),
        *,
        size: int,
        order: Order | None = None,
        start: int = 0,
    ) -> Iterator[Batch]:
        """As :meth:`drivetrain.core.seams.Examples.batches`: all rows in one uniform shuffle."""
        rows = np.arange(self.rows(split))
        if order is not None:
            seed = np.random.SeedSequence((order.seed % 2**64, order.epoch))
            np.random.Generator(np.random.PCG64(seed)).shuffle(rows)
        for first in range(start, len(rows), size):
            mine = np.array_split(rows[first : first + size], shard.count)[shard.index]
            yield Batch(
                {
                    name: np.take(self._columns[split][name], mine, axis=0).astype(kind)
                    for name, kind in self._types.items()
                }
            )


def paired(
    source: Examples,
    catalogue: Array,
    *,
    item: str,
    history: Field | None,
    weight: str | None,
    directory: Path,
    emit: Emit,
) -> Pairs:
    """Read the rows of the splits to train and to validate on.

    Args:
        source: its examples give the features, its events the items in the same order.
        catalogue: the items; rows with others are left out.
        item: the column of items.
        history: the column of a row's last items; None is none.
        weight: the column of weights, which then are 1 in the mean of the training rows.
        directory: on the disk that the rows are held on.
        emit: hears how far the reading has come.
    """
    extra = [FeatureField(name=ITEM, kind="bag", cardinality=len(catalogue) + 1)]
    if history is not None:
        width = history.shape[0] or 1
        extra.append(
            FeatureField(name=HISTORY, kind="bag", width=width, cardinality=len(catalogue) + 1)
        )
    numbers = {value: at for at, value in enumerate(catalogue.tolist(), start=1)}
    columns: dict[Split, dict[str, Array]] = {}
    splits: tuple[Split, ...] = ("train", "validate")
    for split in splits:
        with ExitStack() as stack:
            held = dict[str, _Held]()
            done = 0
            for tensors, raw in aligned(source, split):
                place = _places(raw.column(item), numbers)
                parts = {name: tensors[name] for name in source.features.tensors.names}
                parts[ITEM] = place[:, None]
                if history is not None:
                    parts[HISTORY] = _places(raw.column(history.name), numbers)
                if weight is not None:
                    parts[WEIGHT] = raw[weight]
                for name, part in parts.items():
                    if name not in held:
                        held[name] = _Held(stack.enter_context(_file(directory)), part)
                    held[name].append(part[place > 0])
                done += len(place)
                emit(Progress(stage="train: pairs", done=done, total=source.rows(split)))
            columns[split] = {name: each.read() for name, each in held.items()}
    if not columns["validate"]:
        columns["validate"] = {name: each[:0] for name, each in columns["train"].items()}
    if weight is not None:
        mean = float(columns["train"][WEIGHT].mean()) or 1.0
        for part in columns.values():
            part[WEIGHT] = part[WEIGHT] / np.float32(mean)
    return Pairs(source, tuple(extra), weight is not None, columns)


def aligned(source: Examples, split: Split) -> Iterator[tuple[Batch, Batch]]:
    """Tensors and the raw rows that they belong to: both come in one order.

    Raises:
        ValueError: the events end before their examples.
    """
    raw = source.events.batches(split)
    held: Batch | None = None
    at = 0
    for batch in source.batches(split, size=ROWS):
        taken = 0
        while taken < len(batch):
            if held is None or at == len(held):
                held, at = next(raw, None), 0
                if held is None:
                    raise ValueError("events end before their examples: they changed meanwhile.")
            some = min(len(batch) - taken, len(held) - at)
            if some:
                yield batch.slice(taken, taken + some), held.slice(at, at + some)
            taken, at = taken + some, at + some


def _places(column: Any, numbers: Mapping[Any, int]) -> Array:
    """Where items stand, int32 of the column's shape: 0 for those that are not known."""
    if isinstance(column, Categorical):
        known = [numbers.get(value, 0) for value in column.values.tolist()]
        return np.array(known, np.int32)[column.codes]
    flat = [numbers.get(value, 0) for value in column.reshape(-1).tolist()]
    return np.array(flat, np.int32).reshape(column.shape)


def _file(directory: Path) -> Any:
    return tempfile.TemporaryFile(dir=directory)


class _Held:
    """One column that grows in a file: int32 or float32."""

    def __init__(self, file: Any, like: Array) -> None:
        self._file = file
        self._type = np.dtype(np.int32 if like.dtype.kind in "iu" else np.float32)
        self._shape = like.shape[1:]
        self._rows = 0

    def append(self, part: Array) -> None:
        self._file.write(np.ascontiguousarray(part, self._type).tobytes())
        self._rows += len(part)

    def read(self) -> Array:
        """All of it, out of the file; the memory is the system's, which may take it back."""
        shape = (self._rows, *self._shape)
        if not self._rows:
            return np.empty(shape, self._type)
        self._file.flush()
        return np.asarray(np.memmap(self._file, self._type, "r", shape=shape))
