"""Who had what: the training rows as a compressed sparse matrix of users and items."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from drivetrain.core.batch import Array, Batch, Categorical
from drivetrain.core.errors import wrong
from drivetrain.core.metric import Emit, Progress
from drivetrain.core.schema import MISSING_INT
from drivetrain.core.seams import Examples, Split

ROWS = 65_536
"""Rows that are read at once."""
FIRST_USER = 2
"""Below it stand a user that is missing and all that are rare, as ``Index`` has them."""
_AT_ONCE = 1 << 22
"""Entries whose repeats are merged at once."""


@dataclass(frozen=True, eq=False)
class Sparse:
    """A compressed sparse matrix: row by row, the columns ascending and each once.

    Attributes:
        starts: int64 ``[rows + 1]``: where each row begins among the entries.
        columns: int32 ``[entries]``.
        weights: float32 ``[entries]``.
        wide: how many columns there are.
    """

    starts: Array
    columns: Array
    weights: Array
    wide: int

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> Array:
        """Entries of each row, int64 ``[rows]``."""
        return np.diff(self.starts)

    @cached_property
    def turned(self) -> "Sparse":
        """The same entries, column by column."""
        starts = np.zeros(self.wide + 1, np.int64)
        np.cumsum(np.bincount(self.columns, minlength=self.wide), out=starts[1:])
        order = np.argsort(self.columns, kind="stable")
        rows = np.repeat(np.arange(self.rows, dtype=np.int32), self.lengths)
        return Sparse(starts, rows[order], self.weights[order], self.rows)

    @property
    def plain(self) -> "Sparse":
        """The same entries, each with the weight 1."""
        return Sparse(self.starts, self.columns, np.ones_like(self.weights), self.wide)

    def spans(self, entries: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows ``(first, last)`` of about so many entries each, at least a row."""
        first = 0
        while first < self.rows:
            last = int(np.searchsorted(self.starts, self.starts[first] + entries, side="right")) - 1
            last = max(first + 1, min(last, self.rows))
            yield first, last
            first = last


@dataclass(frozen=True, eq=False)
class Interactions:
    """The training rows of a recall method.

    Attributes:
        catalogue: the items ``[items]``, int64 or object (strings): the most often had first,
            equals in their own order. A column of ``had`` is a position in it.
        counts: int64 ``[items]``: how often each was had, repeats by one known user once.
        had: a row for each position of the users' index, ``[cardinality, items]``; the first two
            (missing, rare) are empty. A weight is the sum of those of the user's rows with the
            item; without a column of weights it is 1.
    """

    catalogue: Array
    counts: Array
    had: Sparse

    def joined(self, source: Examples, column: int, item: str, splits: Sequence[Split]) -> Sparse:
        """What users had in the training rows and in those of further splits, as :attr:`had`.

        Of the further rows only users and items count that the training rows have.
        """
        numbers = {value: at for at, value in enumerate(self.catalogue.tolist())}
        rows = [np.repeat(np.arange(self.had.rows), self.had.lengths)]
        columns = [self.had.columns]
        for split in splits:
            for user, batch in aligned(source, column, split):
                places = [numbers.get(value, -1) for value in batch[item].tolist()]
                place = np.array(places, np.int32)
                known = (place >= 0) & (user >= FIRST_USER)
                rows.append(user[known])
                columns.append(place[known])
        row = np.concatenate(rows)
        starts = np.zeros(self.had.rows + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=self.had.rows), out=starts[1:])
        found = np.concatenate(columns)[np.argsort(row, kind="stable")]
        return _merged(starts, found, np.ones(len(found), np.float32), self.had.wide, once=True)


def read(
    source: Examples, *, column: int, item: str, weight: str | None, emit: Emit
) -> Interactions:
    """Read the split ``train`` twice: once to count, once to lay each entry in its place.

    Beside the answer, which has 8 bytes an entry, no more than a batch and one number for each
    user and item are held.

    Args:
        source: its examples give the users, its events give the items in the same order.
        column: the user's column of the tensor ``index``.
        item: the column of items, strings or integers.
        weight: a numeric column; None counts each pair once.
        emit: hears how far the reading has come.

    Raises:
        ValueError: an item or a weight is missing or no such thing, or there are no rows.
    """
    cardinality = source.features.cardinalities[column]
    lengths = np.zeros(cardinality, np.int64)
    vocabulary = Vocabulary(item)
    done, total = 0, source.rows("train")

    def passes(visit: Callable[[Array, Array, Array | None], None]) -> None:
        nonlocal done
        done = 0
        for user, batch in aligned(source, column, "train"):
            number = None if weight is None else _weights(batch, weight)
            visit(user, vocabulary.codes(batch), number)
            done += len(user)
            emit(Progress(stage="train: reading", done=done, total=total))

    def count(user: Array, codes: Array, number: Array | None) -> None:
        np.add(lengths, np.bincount(user, minlength=cardinality), out=lengths)

    passes(count)
    if not done:
        raise ValueError("split 'train': found 0 rows, allowed: at least 1.")
    lengths[:FIRST_USER] = 0
    starts = np.zeros(cardinality + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    columns = np.empty(starts[-1], np.int32)
    weights = np.empty(starts[-1], np.float32)
    free = starts[:-1].copy()
    alone = np.zeros(len(vocabulary), np.int64)

    def lay(user: Array, codes: Array, number: Array | None) -> None:
        known = user >= FIRST_USER
        np.add(alone, np.bincount(codes[~known], minlength=len(alone)), out=alone)
        order = np.flatnonzero(known)
        order = order[np.argsort(user[order], kind="stable")]
        who = user[order]
        first = np.flatnonzero(np.diff(who, prepend=-1))
        times = np.diff(first, append=len(who))
        at = np.arange(len(who)) - np.repeat(first, times) + free[who]
        columns[at] = codes[order]
        weights[at] = 1 if number is None else number[order]
        free[who[first]] += times

    passes(lay)
    had = _merged(starts, columns, weights, len(vocabulary), once=weight is None)
    counts = alone + np.bincount(had.columns, minlength=len(vocabulary))
    order, place = vocabulary.by_count(counts)
    renamed = Sparse(had.starts, place[had.columns], had.weights, had.wide)
    return Interactions(vocabulary.items[order], counts[order], _sorted(renamed))


def aligned(source: Examples, column: int, split: Split) -> Iterator[tuple[Array, Batch]]:
    """The users' positions and the raw rows that they belong to."""
    for tensors, raw in alongside(source, split):
        yield tensors["index"][:, column], raw


def first_rows(user: Array, waits: Array) -> Array:
    """Where those who wait come first in some rows, int64, ascending; they wait no longer.

    Args:
        user: int64 ``[rows]``.
        waits: bool ``[users]``; changed.
    """
    at = np.flatnonzero(waits[user] & (user >= FIRST_USER))
    at = at[np.sort(np.unique(user[at], return_index=True)[1])]
    waits[user[at]] = False
    return at


def alongside(source: Examples, split: Split) -> Iterator[tuple[Batch, Batch]]:
    """The tensors of examples and the raw rows that they were made of: both come in one order.

    Raises:
        ValueError: there are fewer rows than examples.
    """
    events = source.events.batches(split)
    held: Batch | None = None
    at = 0
    for tensors in source.batches(split, size=ROWS):
        taken = 0
        while taken < len(tensors):
            if held is None or at == len(held):
                held, at = next(events, None), 0
                if held is None:
                    raise ValueError("events end before their examples: they changed meanwhile.")
            some = min(len(tensors) - taken, len(held) - at)
            if some:
                yield tensors.slice(taken, taken + some), held.slice(at, at + some)
            taken, at = taken + some, at + some


def _weights(batch: Batch, name: str) -> Array:
    found = batch[name]
    if found.dtype == object or found.ndim != 1:
        raise wrong(f"column {name!r} of weights", found.dtype.name, "one number a row")
    number = found.astype(np.float32)
    bad = ~np.isfinite(number) | (number < 0)
    if found.dtype == np.int64:
        bad |= found == MISSING_INT
    if bad.any():
        raise wrong(f"column {name!r} of weights", found[bad][0].item(), "numbers of at least 0")
    return number


class Vocabulary:
    """The items that were met, numbered as they came.

    Args:
        name: the column, as errors name it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._numbers: dict[Any, int] = {}
        self._text = False

    def __len__(self) -> int:
        return len(self._numbers)

    def codes(self, batch: Batch) -> Array:
        """The number of each row's item, int64 ``[rows]``.

        Raises:
            ValueError: an item is missing, or the column holds neither strings nor integers.
        """
        column = batch.column(self._name)
        if isinstance(column, Categorical):
            values, inside = column.values.tolist(), column.codes
            used = np.unique(inside)
        elif column.ndim == 1 and (column.dtype == object or column.dtype == np.int64):
            distinct, inside = np.unique(column, return_inverse=True)
            values, used = distinct.tolist(), np.arange(len(distinct))
        else:
            found = (column.dtype.name, column.shape[1:])
            raise wrong(f"target {self._name!r}", found, "one string or int64 a row")
        known = np.full(len(values), -1, np.int64)
        for at in used.tolist():
            value = values[at]
            if not isinstance(value, str | int):
                raise wrong(f"target {self._name!r}", value, "strings or integers")
            if value in ("", MISSING_INT):
                raise ValueError(
                    f"target {self._name!r}: found a row without one, allowed: none. Leave such "
                    f"rows out: .where(col({self._name!r}).is_not_null())."
                )
            self._text |= isinstance(value, str)
            known[at] = self._numbers.setdefault(value, len(self._numbers))
        return known[inside]

    @property
    def items(self) -> Array:
        """All items in the order of their numbers, object or int64."""
        return np.array(list(self._numbers), dtype=object if self._text else np.int64)

    def by_count(self, counts: Array) -> tuple[Array, Array]:
        """The numbers with the commonest first, equals in their own order, and their places."""
        order = np.lexsort((np.argsort(np.argsort(self.items)), -counts))
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        return order, place


def _merged(starts: Array, columns: Array, weights: Array, wide: int, *, once: bool) -> Sparse:
    """Each pair once; its weights are summed, or are 1."""
    raw = Sparse(starts, columns, weights, wide)
    lengths = np.zeros(raw.rows, np.int64)
    kept = 0
    for first, last in raw.spans(_AT_ONCE):
        low, high = starts[first], starts[last]
        row = np.repeat(np.arange(first, last), raw.lengths[first:last])
        order = np.lexsort((columns[low:high], row))
        row, column, weight = row[order], columns[low:high][order], weights[low:high][order]
        new = np.ones(len(row), bool)
        new[1:] = (np.diff(row) != 0) | (np.diff(column) != 0)
        at = np.flatnonzero(new)
        lengths += np.bincount(row[at], minlength=raw.rows)
        merged = slice(kept, kept + len(at))  # never beyond what was read: in place
        columns[merged] = column[at]
        if once:
            weights[merged] = 1
        elif len(at):
            weights[merged] = np.add.reduceat(weight, at)
        kept += len(at)
    found = np.zeros_like(starts)
    np.cumsum(lengths, out=found[1:])
    return Sparse(found, columns[:kept].copy(), weights[:kept].copy(), wide)


def _sorted(matrix: Sparse) -> Sparse:
    """The matrix with the columns of each row ascending."""
    for first, last in matrix.spans(_AT_ONCE):
        low, high = matrix.starts[first], matrix.starts[last]
        row = np.repeat(np.arange(first, last), matrix.lengths[first:last])
        order = np.lexsort((matrix.columns[low:high], row))
        matrix.columns[low:high] = matrix.columns[low:high][order]
        matrix.weights[low:high] = matrix.weights[low:high][order]
    return matrix


def only(names: tuple[str, ...], wanted: str | None, where: str) -> str:
    """The one that is wanted, or the only one.

    Raises:
        ValueError: it is not there, or there are several to choose from.
    """
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        raise wrong(where, names if wanted is None else wanted, f"one of {', '.join(names)}")
    return cast(str, wanted)
