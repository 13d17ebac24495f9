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
from drivetrain.train.recall.interactions import FIRST_USER, Interactions, alongside
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
        """How many rows a split has: those of pairs to learn from, or to validate on."""
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
    found: Interactions,
    *,
    column: int,
    item: str,
    history: Field | None,
    weight: str | None,
    directory: Path,
    emit: Emit,
) -> Pairs:
    """Read the rows of the splits to train and to validate on.

    Args:
        source: its examples give the features, its events the items in the same order.
        found: the pairs to train on, and the items; rows with others are left out.
        column: the users' column of the tensor ``index``.
        item: the column of items.
        history: the column of a row's last items; None is none.
        weight: the column of weights, which then are 1 in the mean of the training rows.
        directory: on the disk that the rows are held on.
        emit: hears how far the reading has come.
    """
    names = [ITEM] if history is None else [ITEM, HISTORY]
    widths = [1, (history and history.shape[0]) or 1]
    extra = tuple(
        FeatureField(name=name, kind="bag", width=width, cardinality=len(found.catalogue) + 1)
        for name, width in zip(names, widths, strict=False)
    )
    numbers = {value: at for at, value in enumerate(found.catalogue.tolist(), start=1)}
    had = found.had
    pairs = np.repeat(np.arange(had.rows), had.lengths) * had.wide + had.columns

    def parts(split: Split, tensors: Batch, raw: Batch) -> dict[str, Array]:
        place = _places(raw.column(item), numbers)
        kept = place > 0
        if split == "train":
            # Whoever tries a method out gives it some of the pairs; rows of users that are not
            # known are no pairs, and always there.
            user = tensors["index"][:, column]
            kept &= _among(pairs, user * had.wide + place - 1) | (user < FIRST_USER)
        columns = {name: tensors[name] for name in source.features.tensors.names}
        columns[ITEM] = place[:, None]
        if history is not None:
            columns[HISTORY] = _places(raw.column(history.name), numbers)
        if weight is not None:
            columns[WEIGHT] = raw[weight]
        return {name: part[kept] for name, part in columns.items()}

    def read(split: Split) -> dict[str, Array]:
        held, done = dict[str, _Held](), 0
        with ExitStack() as stack:
            for tensors, raw in alongside(source, split):
                for name, part in parts(split, tensors, raw).items():
                    if name not in held:
                        file = stack.enter_context(tempfile.TemporaryFile(dir=directory))
                        held[name] = _Held(file, part)
                    held[name].append(part)
                done += len(raw)
                emit(Progress(stage="train: pairs", done=done, total=source.rows(split)))
            return {name: each.read() for name, each in held.items()}

    train = read("train")
    validate = read("validate") or {name: each[:0] for name, each in train.items()}
    if weight is not None:
        mean = np.float32(float(train[WEIGHT].mean()) or 1.0)
        for part in (train, validate):
            part[WEIGHT] = part[WEIGHT] / mean
    return Pairs(source, extra, weight is not None, {"train": train, "validate": validate})


def _among(sorted_: Array, wanted: Array) -> Array:
    """Which are there, bool of the shape of ``wanted``."""
    if not len(sorted_):
        return np.zeros(wanted.shape, bool)
    at = np.searchsorted(sorted_, wanted)
    return sorted_[np.minimum(at, len(sorted_) - 1)] == wanted


def _places(column: Any, numbers: Mapping[Any, int]) -> Array:
    """Where items stand, int32 of the column's shape: 0 for those that are not known."""
    if isinstance(column, Categorical):
        known = [numbers.get(value, 0) for value in column.values.tolist()]
        return np.array(known, np.int32)[column.codes]
    flat = [numbers.get(value, 0) for value in column.reshape(-1).tolist()]
    return np.array(flat, np.int32).reshape(column.shape)


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
