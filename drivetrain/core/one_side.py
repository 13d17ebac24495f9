"""One side of a factorization, a row of which is solved again whenever a partner comes."""

from dataclasses import dataclass
from math import isfinite
from typing import TypeAlias, cast

import numpy as np

from drivetrain.core.batch import Array

_ROOM = 256
"""Rows that there is room for at first."""
_KEPT = ("vectors", "trained_rows", "partners", "held", "total")
_BLOCK = 1 << 14
"""Rows that are multiplied at once in float64."""

_SIGNS = np.array([[1.0], [-1.0]])

Bytes: TypeAlias = bytes
"""``Side.bytes`` is how many there are."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What alternating least squares minimise (Hu, Koren and Volinsky, ICDM 2008).

    Attributes:
        factors: numbers of a row.
        alpha: by how much the confidence in a pair that was had exceeds 1.
        l2: what a factor's square costs.
        recent: partners that a row remembers.
    """

    factors: int
    alpha: float
    l2: float
    recent: int


class Side:
    """The rows of one side that were touched, and the products of all of its rows.

    A row ``x`` with ``n`` partners, of which it remembers ``m`` vectors ``p``, solves
    ``(U + alpha sum of p p') x = U x0 + (1 + alpha) sum of p`` with
    ``U = (1 + alpha (n - m) / N) G + l2 I``: ``G`` and ``N`` are the products and the number of the
    other side's rows, so that partners nobody remembers count as average ones. The prior ``x0`` is
    the row's trained vector, or nought for a row that is new: that one is then the exact least
    squares solution. Once a row forgets, what it forgot left it where it is: it goes on from there
    with the one partner that comes, the remembered ones being part of ``U``. Both are updates of
    recursive least squares, each with ``G`` as it is now: a prior that was multiplied by an older
    ``G`` would grow and shrink with the other side.

    Vectors are rounded to float32 before anything is made of them; all else is float64.

    Args:
        objective: what is minimised.
        trained: float32 ``[trained rows, factors]``; not changed.
        rows: how many rows are known, at most so many.

    Attributes:
        rows: how many rows this side has, touched or not.
        gram: float64 ``[factors, factors]``, the products of all of them.
        slots: how many rows were touched. Of each there are:
        vectors: float32 ``[slots, factors]``, and room for more, as below;
        trained_rows: int64 ``[slots]``: its trained row, -1 where it is new;
        partners: int32 ``[slots, recent]``: slots of the other side, the oldest first;
        held: int64 ``[slots]``: how many partners are remembered;
        total: int64 ``[slots]``: how many there are.
    """

    def __init__(self, objective: Objective, trained: Array, rows: int) -> None:
        d, recent = objective.factors, objective.recent
        self.objective = objective
        self.rows = rows
        self.gram = np.zeros((d, d))
        for first in range(0, len(trained), _BLOCK):
            block = trained[first : first + _BLOCK].astype(np.float64)
            self.gram += block.T @ block
        self.slots = 0
        self.vectors = np.zeros((_ROOM, d), np.float32)
        self.trained_rows = np.zeros(_ROOM, np.int64)
        self.partners = np.zeros((_ROOM, recent), np.int32)
        self.held = np.zeros(_ROOM, np.int64)
        self.total = np.zeros(_ROOM, np.int64)
        self._trained = trained
        self._diagonal = slice(0, d * d, d + 1)

    def _room(self, rows: int) -> None:
        for name in _KEPT:
            array: Array = getattr(self, name)
            # Large memory is moved by its pages, not copied: no event has to wait for that.
            array.resize((rows, *array.shape[1:]), refcheck=False)

    def _arrays(self) -> dict[str, Array]:
        """What is kept of slots, by name, without the room for more."""
        return {name: getattr(self, name)[: self.slots] for name in _KEPT}

    @property
    def bytes(self) -> int:
        """The memory that slots take."""
        return sum(getattr(self, name).nbytes for name in _KEPT)

    def dump(self) -> Bytes:
        """All that is kept, but how many slots and rows there are."""
        return b"".join(array.tobytes() for array in (self.gram, *self._arrays().values()))

    def fill(self, data: memoryview, slots: int, rows: int) -> memoryview:
        """Take over what :meth:`dump` gave; what follows it."""
        self.slots, self.rows = slots, rows
        self._room(max(_ROOM, slots))
        for array in (self.gram, *self._arrays().values()):
            found, data = data[: array.nbytes], data[array.nbytes :]
            array[...] = np.frombuffer(found, array.dtype).reshape(array.shape)
        return data

    def touch(self, row: int | None, total: int = 0) -> int:
        """A slot for a row.

        Args:
            row: its trained one; None: it is new.
            total: how many partners it had in training.
        """
        if self.slots == len(self.held):
            self._room(self.slots + self.slots // 8 + _ROOM)
        slot = self.slots
        self.slots += 1
        self.trained_rows[slot], self.total[slot] = -1 if row is None else row, total
        if row is None:
            self.rows += 1
        else:
            self.vectors[slot] = self._trained[row]
        return slot

    def remembered(self, slot: int) -> Array:
        """The slots of a row's remembered partners, the oldest first."""
        return self.partners[slot, : self.held[slot]]

    def remember(self, slot: int, partner: int) -> None:
        """Add a partner, without solving anything."""
        held = self.held[slot]
        if held == self.objective.recent:
            self.partners[slot, :-1] = self.partners[slot, 1:]
            held -= 1
        self.partners[slot, held] = partner
        self.held[slot] = held + 1
        self.total[slot] += 1

    def learn(self, slot: int, partner: int, other: "Side") -> None:
        """Add a partner and solve the row, which stays where it is if it has no finite solution."""
        alpha = self.objective.alpha
        forgets = self.held[slot] == self.objective.recent
        self.remember(slot, partner)
        near = other.vectors[self.remembered(slot)].astype(np.float64)
        system = self._unremembered(int(self.total[slot]) - len(near), other)
        if forgets:
            prior, old, near = self.vectors[slot], near[:-1], near[-1:]
            system += old.T @ (alpha * old)
        else:
            row = self.trained_rows[slot]
            prior = self._trained[row] if row >= 0 else None
        due = (1 + alpha) * near.sum(axis=0)
        if prior is not None:
            due += system @ prior.astype(np.float64)
        system += near.T @ (alpha * near)
        try:
            found = cast(Array, np.linalg.solve(system, due))
        except np.linalg.LinAlgError:  # beside products as large as these l2 is lost
            return
        with np.errstate(over="ignore"):  # what is too large is not placed
            self.place(slot, found.astype(np.float32))

    def place(self, slot: int, vector: Array) -> None:
        """Give a row another vector; one whose products are not finite is left."""
        if not isfinite(vector @ vector):
            return
        both = np.empty((2, len(vector)))
        both[0], both[1] = vector, self.vectors[slot]
        self.gram += both.T @ (both * _SIGNS)
        self.vectors[slot] = vector

    def _unremembered(self, partners: int, other: "Side") -> Array:
        """The system of a row with so many average partners."""
        system = (1 + self.objective.alpha * partners / max(1, other.rows)) * other.gram
        system.reshape(-1)[self._diagonal] += self.objective.l2
        return system
