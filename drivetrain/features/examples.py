"""What a strategy trains on: a source seen through the feature graph, in batches of tensors.

With a cache the rows of a split go through the graph once and lie as flat files from then on; an
epoch then costs plain reads and one gather. Without one every epoch reads the source anew.
"""

import fcntl
import shutil
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from drivetrain.core.ahead import ahead, in_parallel
from drivetrain.core.batch import Array, Batch
from drivetrain.core.cores import cores
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.metric import Emit, Metric, Progress, silent
from drivetrain.core.schema import MISSING_INT, FeatureSchema, Schema
from drivetrain.core.seams import SPLITS, Order, Shard, Source, Split
from drivetrain.features.blocks import Block, Blocks, blocks_of, fill
from drivetrain.features.order import CHUNKS, Windows, generator, turns

Tensors = Mapping[str, Array]


class Runs(Protocol):
    """Raw columns to tensors: what :class:`drivetrain.features.transform.Transform` is."""

    @property
    def features(self) -> FeatureSchema:
        """What :meth:`run` gives."""
        ...

    def run(self, batch: Batch) -> Batch:
        """The tensors of ``features``, for all rows of a batch."""
        ...


@dataclass(frozen=True)
class Examples:
    """Model inputs and targets in batches; implements :class:`drivetrain.core.seams.Examples`.

    Arrays are C-contiguous, writeable and of fresh memory: they may be held for as long as the
    caller likes, and ``torch.from_numpy`` copies nothing.

    Attributes:
        source: where rows come from.
        transform: raw columns to tensors.
        targets: numeric columns of the source that the loss sees.
        cache: a directory of its own for these very rows, graph and targets (the caller names it
            by their digests), made at first use; None keeps nothing, for sources that play or
            sample.
        emit: hears how far the cache has come.

    Raises:
        ValueError: a target is no column of the source or no number.
    """

    source: Source
    transform: Runs
    targets: Schema
    cache: Path | None = None
    emit: Emit = field(default=silent, repr=False, compare=False)

    def __post_init__(self) -> None:
        for target in self.targets:
            found = self.source.schema.field(target.name, "targets")
            if "object" in (found.numpy, target.numpy):
                allowed = "a number; turn text into a class number"
                raise wrong(f"target {target.name!r}", found.dtype, allowed)

    @property
    def events(self) -> Source:
        """The source underneath."""
        return self.source

    @property
    def features(self) -> FeatureSchema:
        """What the model's inputs are."""
        return self.transform.features

    def rows(self, split: Split) -> int | None:
        """How many rows a split has; None without a cache, where it would cost a reading.

        Raises:
            ValueError: as :meth:`batches`, the first time that a split is asked for.
        """
        _check_split(split)
        return self._blocks(split).rows if self.cache is not None else None

    def batches(
        self,
        split: Split,
        shard: Shard = Shard(),
        *,
        size: int,
        order: Order | None = None,
        start: int = 0,
    ) -> Iterator[Batch]:
        """Batches of ``size`` rows (the last may be smaller), one column a tensor and a target.

        Over the shards of one split, order and count every row comes exactly once. With a cache
        the shards share each batch that a single shard would see, and have equally many:
        :func:`drivetrain.features.order.turns`. Without a cache the source divides the rows.

        Args:
            split: which rows.
            shard: which part of them.
            size: rows a batch, of all shards together.
            order: a seeded shuffle; None keeps the source's order. With a cache, random chunks
                of the split make a window of some ten megabytes, which is shuffled; a split that
                fits in one is shuffled uniformly. Without a cache, 16 batches at a time are.
            start: how many rows to skip, of all shards together, for resuming in the middle of an
                epoch, with as many shards as then or another number (without a cache, the same);
                what lies before is not read (with a cache) or not transformed (without).

        Raises:
            ValueError: a target is missing in some row; an argument is out of its range.
            OSError: the cache can't be written; nothing is then left of it.
        """
        _check_split(split)
        if not 0 <= shard.index < shard.count:
            raise wrong("shard", shard, "an index from 0 to below the count")
        if size < shard.count:
            raise wrong("size", size, f"{shard.count} or more, a row for each shard")
        if start < 0:
            raise wrong("start", start, "0 or more")
        if self.cache is None:
            return self._streamed(split, shard, size, order, start)
        return self._read(self._blocks(split), shard, size, order, start)

    def take(self, split: Split, rows: Array) -> Batch:
        """The rows of these numbers, in the order given; needs a cache.

        Args:
            split: which rows.
            rows: int64 ``[n]``, from 0 to below the split's rows; may be empty.

        Raises:
            ValueError: there is no cache, and so no row has a number; or as :meth:`batches`.
        """
        _check_split(split)
        if self.cache is None:
            raise ValueError("take: found events that nobody can count, allowed: rows in files.")
        return Batch(self._blocks(split).take(rows))

    # -- with a cache --------------------------------------------------------------------------

    @cached_property
    def _layout(self) -> tuple[Block, ...]:
        return blocks_of(self.features, self.targets)

    @cached_property
    def _opened(self) -> dict[Split, Blocks]:
        return {}

    def _blocks(self, split: Split) -> Blocks:
        if split not in self._opened:
            assert self.cache is not None
            path = self.cache / split
            if not path.exists():
                self._make(path, split)
            self._opened[split] = Blocks.open(path, self._layout)
        return self._opened[split]

    def _make(self, path: Path, split: Split) -> None:
        """Send a split through the graph, once, into the directory ``path``."""
        try:
            with _alone(path):
                if not path.exists():
                    self._fill(path, split)
        except OSError as error:
            text = f"the examples of split {split!r} can't be kept: {error.strerror or error}"
            raise OSError(error.errno, text, str(path)) from error

    def _fill(self, path: Path, split: Split) -> None:
        missing = _Missing(self.targets, split)
        began = time.perf_counter()
        with fill(path, self._layout) as writer:
            batches = missing.before(self.source.batches(split))
            for tensors in in_parallel(self._tensors, batches, cores()):
                writer.append(tensors)
                self.emit(Progress(stage="examples", done=writer.rows))
            missing.refuse()
        seconds = time.perf_counter() - began
        self.emit(Metric(name=f"examples/{split}_rows", value=writer.rows))
        self.emit(Metric(name=f"examples/{split}_seconds", value=seconds, repeatable=False))

    def _read(
        self, blocks: Blocks, shard: Shard, size: int, order: Order | None, start: int
    ) -> Iterator[Batch]:
        order_of = Windows.of(blocks.rows, blocks.row_bytes, order)
        ranges = list(turns(shard, size, start, blocks.rows))
        parts = order_of.parts((low, high) for low, high in ranges if low < high)
        windows = ahead(blocks.read(part.spans, part.rows) for part in parts)
        yield from _cut(windows, _share(size, shard))
        if ranges and ranges[-1][0] == ranges[-1][1]:  # its turn, though no row was left for it
            yield Batch(blocks.read(()))

    # -- without a cache -----------------------------------------------------------------------

    def _streamed(
        self, split: Split, shard: Shard, size: int, order: Order | None, start: int
    ) -> Iterator[Batch]:
        share = _share(size, shard)
        return _cut(self._mixed(split, shard, share, order, start // size * share), share)

    def _mixed(
        self, split: Split, shard: Shard, size: int, order: Order | None, start: int
    ) -> Iterator[Tensors]:
        """Windows of 16 batches, each shuffled; without an order, batches as they come."""
        number, inside = divmod(start, CHUNKS * size) if order else (0, 0)
        tensors = self._transformed(
            _after(self.source.batches(split, shard), start - inside), split
        )
        if order is None:
            yield from tensors
            return
        for window, batch in enumerate(_cut(tensors, CHUNKS * size), start=number):
            rows = generator(order, window).permutation(len(batch))[inside:]
            inside = 0
            yield {name: np.take(column, rows, axis=0) for name, column in _arrays(batch).items()}

    def _transformed(self, batches: Iterable[Batch], split: Split) -> Iterator[Tensors]:
        for batch in batches:
            missing = _Missing(self.targets, split)
            missing.count(batch)
            missing.refuse()
            yield _arrays(self._tensors(batch))

    def _tensors(self, batch: Batch) -> Batch:
        """Tensors and targets of raw rows."""
        columns = {
            target.name: np.require(batch[target.name], target.numpy, ("C", "W"))
            for target in self.targets
        }
        return self.transform.run(batch).with_columns(columns)


def _share(size: int, shard: Shard) -> int:
    """The rows of one shard in a batch of all."""
    each, more = divmod(size, shard.count)
    return each + (shard.index < more)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)


def _arrays(batch: Batch) -> Tensors:
    return cast(Tensors, batch.columns)


def _cut(windows: Iterator[Tensors], size: int) -> Iterator[Batch]:
    """Batches of ``size`` rows: views of the windows, and copies where one goes over a border."""
    held: list[Tensors] = []
    rows = 0
    with closing(cast("Generator[Tensors]", windows)):
        for window in windows:
            at, length = 0, len(next(iter(window.values())))
            if rows:
                at = min(size - rows, length)
                held.append({name: column[:at] for name, column in window.items()})
                rows += at
                if rows < size:
                    continue
                yield _joined(held)
            whole = at + (length - at) // size * size
            for first in range(at, whole, size):
                yield Batch({n: column[first : first + size] for n, column in window.items()})
            held, rows = [], length - whole
            if rows:
                held.append({name: column[whole:] for name, column in window.items()})
        if rows:
            yield _joined(held)


def _joined(parts: list[Tensors]) -> Batch:
    if len(parts) == 1:
        return Batch(parts[0])
    return Batch({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _after(batches: Iterable[Batch], rows: int) -> Iterator[Batch]:
    """The batches without their first ``rows`` rows."""
    for batch in batches:
        skipped = min(rows, len(batch))
        rows -= skipped
        if skipped < len(batch):
            yield batch.slice(skipped, len(batch)) if skipped else batch


class _Missing:
    """How many rows of a split lack each target."""

    def __init__(self, targets: Schema, split: Split) -> None:
        self._split = split
        self._counts = dict.fromkeys(targets.names, 0)
        self._rows = 0

    def count(self, batch: Batch) -> bool:
        """Take in a batch; whether any row so far lacks a target."""
        for name in self._counts:
            column = batch[name]
            missing = column == MISSING_INT if column.dtype.kind == "i" else ~np.isfinite(column)
            rows = missing.any(axis=tuple(range(1, missing.ndim)))
            self._counts[name] += int(rows.sum())
        self._rows += len(batch)
        return any(self._counts.values())

    def before(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches up to the first that lacks a target; the rest are only counted."""
        for batch in batches:
            if not self.count(batch):
                yield batch

    def refuse(self) -> None:
        """Raises ValueError if a target was missing in any row."""
        for name, count in self._counts.items():
            if count:
                raise ValueError(
                    f"target {name!r}: found {count} missing among {self._rows} rows of split "
                    f"{self._split!r}, allowed: none. Drop the rows that have no outcome from the "
                    f"events: .where(col({name!r}).is_not_null())."
                )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock on making ``path``, and clear what a killed process left of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in path.parent.glob(f".{path.name}.*"):
            if left.is_dir():
                shutil.rmtree(left)
        yield
