"""The last rows of each user, held out: what came after all else that is known of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from drivetrain.core.batch import Array, Batch
from drivetrain.core.seams import Examples, Split
from drivetrain.train.recall.interactions import (
    FIRST_USER,
    Interactions,
    Sparse,
    aligned,
)

Follow = Callable[[Array], Array]
"""Tells of rows, batch by batch from the first, by their users, whether they are the last ones."""


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

    def followed(self) -> Follow:
        """What tells of rows whether they are among the last."""
        done = np.zeros(len(self.begins), np.int64)

        def follow(user: Array) -> Array:
            order = np.argsort(user, kind="stable")
            who = user[order]
            first = np.flatnonzero(np.diff(who, prepend=-1))
            times = np.diff(first, append=len(who))
            number = np.empty(len(user), np.int64)
            number[order] = np.arange(len(who)) - np.repeat(first, times) + done[who]
            done[who[first]] += times
            return (number >= self.begins[user]) & (user >= FIRST_USER)

        return follow
