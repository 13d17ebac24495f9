"""What a ranker learns from: lists of candidates, and which of them the user then had.

A recall method that has seen a pair scores it as nobody will who asks for something new. So the
last rows of each user are held out, recall learns from those before, and is asked as of each row
that was held out, with what was known at that moment. One batch of rows is held at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from drivetrain.core.batch import Array, Batch
from drivetrain.core.graph import Session
from drivetrain.core.schema import FeatureSchema, Field, Schema
from drivetrain.core.seams import Shard, Split
from drivetrain.models.list_ranking import HISTORY, PLACES, RECALL
from drivetrain.train.recall.interactions import Sparse, alongside, first_rows
from drivetrain.train.recall.last_rows import Last, Log

HAD = "had"
"""The target: 1 for a candidate that the user then had, 0 for another."""
TOGETHER = 512
"""Rows that recall is asked for at once."""
VALIDATE = 0.1
"""Of the users, where the system has no validation rows, whose lists validate."""


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
                at = first_rows(user, waits)
            for first in range(0, len(at), TOGETHER):
                rows = at[first : first + TOGETHER]
                yield tensors.take(rows), raw.take(rows), user[rows]
