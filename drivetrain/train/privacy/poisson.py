"""Batches that take each row by itself with one probability, as the privacy accountant assumes."""

from collections.abc import Iterator

import numpy as np

from drivetrain.core.batch import Batch
from drivetrain.core.seams import Addressable, Order, Shard, Split
from drivetrain.train.privacy.secret import Secret
from drivetrain.train.together.relayed import Relayed


class Poisson(Relayed):
    """Examples whose training batches are drawn; other splits are read as they are.

    An epoch has as many batches as one in order would have, each of ``size`` rows in the mean; a
    row may be in several of them or in none. The shards share each batch.

    Args:
        examples: rows that can be taken by number.
        rows: of the training split.
        secret: decides.
    """

    def __init__(self, examples: Addressable, rows: int, secret: Secret) -> None:
        super().__init__(examples)
        self._examples = examples
        self._rows = rows
        self._secret = secret

    def batches(
        self,
        split: Split,
        shard: Shard = Shard(),
        *,
        size: int,
        order: Order | None = None,
        start: int = 0,
    ) -> Iterator[Batch]:
        """As :meth:`drivetrain.core.seams.Examples.batches`; an order's epoch says which batches.

        Args:
            split: which rows.
            shard: which part of each batch.
            size: rows expected in a batch, of all shards together.
            order: of a training split its epoch counts, and not its seed, which is no secret.
            start: a multiple of ``size``: batches to skip, as if each had its expected rows.
        """
        if split != "train" or order is None:
            yield from self._examples.batches(split, shard, size=size, order=order, start=start)
            return
        updates = -(-self._rows // size)
        for number in range(start // size, updates):
            update = order.epoch * updates + number
            drawn = self._secret.rows(update, self._rows, size / self._rows)
            mine = np.array_split(drawn, shard.count)[shard.index]
            yield self._examples.take("train", mine)
