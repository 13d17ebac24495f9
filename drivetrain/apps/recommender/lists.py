"""What a ranker learns from: lists of candidates, and which of them the user then had.

A recall method that has seen a pair scores it as nobody will who asks for something new. So some
pairs are held out, recall learns from the others, and is asked for each user as of the first row
that was held out. All is a function of the rows and a seed; one batch of them is held at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from drivetrain.apps.recommender.ranking import HISTORY, PLACES, RECALL
from drivetrain.core.batch import Array, Batch
from drivetrain.core.graph import Session
from drivetrain.core.schema import FeatureSchema, Field, Schema
from drivetrain.core.seams import Examples, Shard, Split
from drivetrain.train.recall.interactions import FIRST_USER, Interactions, Sparse, aligned, alongside

HAD = "had"
"""The target: 1 for a candidate that the user then had, 0 for another."""
TOGETHER = 512
"""Rows that recall is asked for at once."""


def share_of(user: Array, place: Array, seed: int) -> Array:
    """Where pairs lie between 0 and 1: float64 of a seeded hash (SplitMix64; Steele 2014)."""
    with np.errstate(over="ignore"):
        mixed = user.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed += place.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
        mixed += np.uint64(seed) + np.uint64(1)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


@dataclass(frozen=True)
class Part:
    """Which pairs are held out: those whose share lies in ``[low, high)``."""

    low: float
    high: float
    seed: int

    def holds(self, user: Array, place: Array) -> Array:
        """Whether each pair is held out, bool ``[pairs]``."""
        share = share_of(user, place, self.seed)
        return (self.low <= share) & (share < self.high)

    def divided(self, found: Interactions) -> tuple[Interactions, Sparse]:
        """The interactions without what is held out, and that."""
        had = found.had
        user = np.repeat(np.arange(had.rows), had.lengths)
        out = self.holds(user, had.columns)
        held, kept = _chosen(had, user, out), _chosen(had, user, ~out)
        counts = found.counts - np.bincount(held.columns, minlength=len(found.counts))
        return replace(found, counts=counts, had=kept), held


def _chosen(had: Sparse, user: Array, which: Array) -> Sparse:
    starts = np.zeros(had.rows + 1, np.int64)
    np.cumsum(np.bincount(user[which], minlength=had.rows), out=starts[1:])
    return Sparse(starts, had.columns[which], had.weights[which], had.wide)


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked of one state of recall, and what was then had.

    Attributes:
        split: of the rows as of which users are asked.
        recall: the features of who asks, and raw columns, to candidates.
        part: only rows that are held out so; None takes each user's first row.
        had: what the users then had.
    """

    split: Split
    recall: Session
    part: Part | None
    had: Sparse

    @cached_property
    def pairs(self) -> Array:
        """What was had as ``user * items + place``, ascending."""
        user = np.repeat(np.arange(self.had.rows), self.had.lengths)
        return user * self.had.wide + self.had.columns


@dataclass(frozen=True, eq=False)
class Lists:
    """Lists of candidates as a source; a row is one list.

    Attributes:
        examples: whose rows users are asked as of.
        item: the column of items.
        column: the users' column of the tensor ``index``.
        catalogue: the items.
        chosen: the features of a list that come from the examples, and the columns of their
            blocks that are theirs.
        features: of a list.
        asked: what is asked, for each split.
        most: lists of a split; of more users some are drawn.
        seed: of that draw.
    """

    examples: Examples
    item: str
    column: int
    catalogue: Array
    chosen: dict[str, list[int] | None]
    features: FeatureSchema
    asked: dict[Split, list[Asked]]
    most: int
    seed: int

    @property
    def schema(self) -> Schema:
        """The tensors of a list, and what was had of it."""
        return Schema((*self.features.tensors, *self.targets))

    @property
    def targets(self) -> Schema:
        """What was had of a list."""
        return Schema((Field(HAD, "float32", (self.features.field(PLACES).width,)),))

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator[Batch]:
        """The lists of a split that have something in them that was had."""
        for asked in self.asked.get(split, []):
            for number, (tensors, raw, user) in enumerate(self._rows(asked)):
                if number % shard.count == shard.index:
                    found = self._lists(asked, tensors, raw, user)
                    if len(found):
                        yield found

    def run(self, batch: Batch) -> Batch:
        """The tensors of a list: nothing is left to do."""
        return batch.select(self.features.tensors.names)

    def _lists(self, asked: Asked, tensors: Batch, raw: Batch, user: Array) -> Batch:
        given = tensors.with_columns({n: raw[n] for n, _ in asked.recall.inputs if n in raw})
        found = asked.recall.run(given)
        pairs = user[:, None] * asked.had.wide + found[PLACES]
        at = np.searchsorted(asked.pairs, pairs).clip(max=max(0, len(asked.pairs) - 1))
        inside = found[PLACES] < asked.had.wide
        had = (inside & (asked.pairs[at] == pairs)) if len(asked.pairs) else np.zeros_like(inside)
        columns = {name: tensors[name] for name in self.chosen}
        for name, chosen in self.chosen.items():
            if chosen is not None:
                columns[name] = np.ascontiguousarray(columns[name][:, chosen])
        columns |= {name: found[name] for name in (PLACES, RECALL, HISTORY) if name in found}
        columns[HAD] = had.astype(np.float32)
        return Batch(columns).take(np.flatnonzero(had.any(axis=1)))

    def _rows(self, asked: Asked) -> Iterator[tuple[Batch, Batch, Array]]:
        """The rows as of which users are asked, each user once, at most ``TOGETHER`` at a time."""
        users = int((asked.had.lengths > 0).sum())
        numbers = {value: at for at, value in enumerate(self.catalogue.tolist())}
        waits = asked.had.lengths > 0
        if users > self.most:
            each = share_of(np.arange(asked.had.rows), np.zeros(asked.had.rows), self.seed + 1)
            waits &= each < self.most / users
        for tensors, raw in alongside(self.examples, asked.split):
            user = tensors["index"][:, self.column]
            wanted = waits[user] & (user >= FIRST_USER)
            if asked.part is not None:
                place = np.array([numbers.get(v, -1) for v in raw[self.item].tolist()], np.int64)
                wanted &= asked.part.holds(user, place) & (place >= 0)
            at = np.flatnonzero(wanted)
            at = at[np.sort(np.unique(user[at], return_index=True)[1])]
            waits[user[at]] = False
            for first in range(0, len(at), TOGETHER):
                rows = at[first : first + TOGETHER]
                yield tensors.take(rows), raw.take(rows), user[rows]


def had_in(source: Examples, split: Split, item: str, column: int, found: Interactions) -> Sparse:
    """What known users had of the catalogue in a split: 8 bytes for each pair are held."""
    numbers = {value: at for at, value in enumerate(found.catalogue.tolist())}
    pairs = [np.empty(0, np.int64)]
    for user, raw in aligned(source, column, split):
        place = np.array([numbers.get(value, -1) for value in raw[item].tolist()], np.int64)
        known = (place >= 0) & (user >= FIRST_USER)
        pairs.append(user[known] * found.had.wide + place[known])
    user, place = np.divmod(np.unique(np.concatenate(pairs)), found.had.wide)
    starts = np.zeros(found.had.rows + 1, np.int64)
    np.cumsum(np.bincount(user, minlength=found.had.rows), out=starts[1:])
    ones = np.ones(len(place), np.float32)
    return Sparse(starts, place.astype(np.int32), ones, found.had.wide)
