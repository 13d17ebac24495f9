"""What a ranker learns from: lists of candidates, and which of them the user then had.

A recall method that has seen a pair scores it as nobody will who asks for something new. So the
last rows of each user are held out, recall learns from those before, and is asked as of each row
that was held out, with what was known at that moment. One batch of rows is held at a time.
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
from drivetrain.train.recall.interactions import (
    FIRST_USER,
    Interactions,
    Sparse,
    aligned,
    alongside,
)

HAD = "had"
"""The target: 1 for a candidate that the user then had, 0 for another."""
TOGETHER = 512
"""Rows that recall is asked for at once."""
VALIDATE = 0.1
"""Of the users, where the system has no validation rows, whose lists validate."""


def drawn(user: Array, seed: int) -> Array:
    """Where users lie between 0 and 1: float64 of a seeded hash (SplitMix64; Steele 2014)."""
    mixed = user.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


@dataclass(frozen=True, eq=False)
class Log:
    """The rows of a system, user by user.

    Attributes:
        examples: of the system.
        column: the users' column of the tensor ``index``.
        item: the column of items.
        catalogue: the items.
    """

    examples: Examples
    column: int
    item: str
    catalogue: Array

    @cached_property
    def _numbers(self) -> dict[object, int]:
        return {value: at for at, value in enumerate(self.catalogue.tolist())}

    def places(self, raw: Batch) -> Array:
        """The place of each row's item, int64; -1 for one that is not in the catalogue."""
        numbers = self._numbers
        return np.array([numbers.get(value, -1) for value in raw[self.item].tolist()], np.int64)

    def last(self, share: float, rows: int) -> "Last":
        """The last rows of each user.

        Args:
            share: of their rows; at least one, where they have two.
            rows: of the users' index.
        """
        lengths = np.zeros(rows, np.int64)
        for user, _ in aligned(self.examples, self.column, "train"):
            lengths += np.bincount(user, minlength=rows)
        lengths[:FIRST_USER] = 0
        return Last(lengths - np.minimum(np.ceil(share * lengths), lengths - 1).clip(0))

    def had(self, split: Split, found: Interactions, last: "Last | None" = None) -> Sparse:
        """What known users had in a split, or in their last training rows: 8 bytes for a pair."""
        pairs = [np.empty(0, np.int64)]
        follow = None if last is None else last.followed()
        for user, raw in aligned(self.examples, self.column, split):
            place = self.places(raw)
            known = (place >= 0) & (user >= FIRST_USER)
            if follow is not None:
                known &= follow(user)
            pairs.append(user[known] * found.had.wide + place[known])
        return _sparse(np.unique(np.concatenate(pairs)), found.had)

    def without(self, last: "Last", found: Interactions) -> Interactions:
        """The interactions but for what users had in their last rows."""
        had = found.had
        user = np.repeat(np.arange(had.rows), had.lengths)
        pairs = user * had.wide + had.columns
        late = self.had("train", found, last)
        held = np.repeat(np.arange(had.rows), late.lengths) * had.wide + late.columns
        out = np.isin(pairs, held, assume_unique=True)
        kept = replace(_sparse(pairs[~out], had), weights=had.weights[~out])
        counts = found.counts - np.bincount(had.columns[out], minlength=len(found.counts))
        return replace(found, counts=counts, had=kept)


def _sparse(pairs: Array, like: Sparse) -> Sparse:
    """Pairs ``user * wide + place``, ascending, as a matrix."""
    user, place = np.divmod(pairs, like.wide)
    starts = np.zeros(like.rows + 1, np.int64)
    np.cumsum(np.bincount(user, minlength=like.rows), out=starts[1:])
    return Sparse(starts, place.astype(np.int32), np.ones(len(place), np.float32), like.wide)


@dataclass(frozen=True, eq=False)
class Last:
    """Where each user's last rows begin, int64 ``[users]``."""

    begins: Array

    def followed(self) -> "_Follow":
        """Tells of rows, batch by batch from the first, whether they are among the last."""
        return _Follow(self.begins, np.zeros(len(self.begins), np.int64))


@dataclass(frozen=True, eq=False)
class _Follow:
    begins: Array
    done: Array

    def __call__(self, user: Array) -> Array:
        order = np.argsort(user, kind="stable")
        who = user[order]
        first = np.flatnonzero(np.diff(who, prepend=-1))
        times = np.diff(first, append=len(who))
        number = np.empty(len(user), np.int64)
        number[order] = np.arange(len(who)) - np.repeat(first, times) + self.done[who]
        self.done[who[first]] += times
        return (number >= self.begins[user]) & (user >= FIRST_USER)


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked of one state of recall.

    Attributes:
        split: of the rows as of which users are asked.
        recall: the features of who asks, and raw columns, to candidates.
        users: bool ``[users]``: who is asked.
        last: asks as of each of these rows, and what counts is the row's own item; None asks
            each user as of the first row, and what counts is ``had``.
        had: what users had in the split.
    """

    split: Split
    recall: Session
    users: Array
    last: Last | None = None
    had: Sparse | None = None

    @cached_property
    def pairs(self) -> Array:
        """What was had as ``user * items + place``, ascending; one at least."""
        assert self.had is not None
        user = np.repeat(np.arange(self.had.rows), self.had.lengths)
        return user * self.had.wide + self.had.columns


@dataclass(frozen=True, eq=False)
class Lists:
    """Lists of candidates as a source; a row is one list.

    Attributes:
        log: the rows as of which users are asked.
        chosen: the tensors of a list that come from the examples, and the columns of their blocks
            that are theirs; None for all.
        features: of a list.
        asked: what is asked, for each split.
    """

    log: Log
    chosen: dict[str, list[int] | None]
    features: FeatureSchema
    asked: dict[Split, Asked]

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
        asked = self.asked.get(split)
        if asked is None:
            return
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
        places = found[PLACES]
        if asked.had is None:
            had = places == self.log.places(raw)[:, None]
        else:
            pairs = user[:, None] * asked.had.wide + places
            at = np.searchsorted(asked.pairs, pairs).clip(max=len(asked.pairs) - 1)
            had = (asked.pairs[at] == pairs) & (places < asked.had.wide)
        columns = {name: tensors[name] for name in self.chosen}
        for name, chosen in self.chosen.items():
            if chosen is not None:
                columns[name] = np.ascontiguousarray(columns[name][:, chosen])
        columns |= {name: found[name] for name in (PLACES, RECALL, HISTORY) if name in found}
        columns[HAD] = had.astype(np.float32)
        return Batch(columns).take(np.flatnonzero(had.any(axis=1)))

    def _rows(self, asked: Asked) -> Iterator[tuple[Batch, Batch, Array]]:
        """The rows as of which users are asked, at most ``TOGETHER`` at a time."""
        waits = asked.users.copy()
        follow = None if asked.last is None else asked.last.followed()
        for tensors, raw in alongside(self.log.examples, asked.split):
            user = tensors["index"][:, self.log.column]
            if follow is not None:
                at = np.flatnonzero(follow(user) & waits[user])
            else:
                at = np.flatnonzero(waits[user] & (user >= FIRST_USER))
                at = at[np.sort(np.unique(user[at], return_index=True)[1])]
                waits[user[at]] = False
            for first in range(0, len(at), TOGETHER):
                rows = at[first : first + TOGETHER]
                yield tensors.take(rows), raw.take(rows), user[rows]
