"""One side of a factorization, a row of which is solved again whenever a partner comes."""

from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np

from drivetrain.core.batch import Array

_ROOM = 256
"""Rows that there is room for at first."""
_KEPT = ("vectors", "partners", "held", "total", "anchors")
_BLOCK = 1 << 14
"""Rows that are multiplied at once in float64."""

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

    A row ``x`` with ``n`` partners, of which it remembers ``m`` vectors ``p``, is the solution of
    ``H x = a + (1 + alpha) sum of p`` with
    ``H = (1 + alpha (n - m) / N) G + l2 I + alpha sum of p p'``: ``G`` and ``N`` are products and
    number of the other side's rows, so partners that nobody remembers count as average ones. The
    anchor ``a`` is nought for a row that remembers all, which makes ``x`` the exact least squares
    solution. Else it is such that what is not remembered left the row where it was: a trained one
    at its trained vector, and any row where it stood before it forgot its oldest partner. So the
    update is one of recursive least squares.

    Vectors are rounded to float32 before anything is made of them; all else is float64.

    Args:
        objective: what is minimised.
        trained: float32 ``[rows, factors]``, the rows that training left; are not changed.

    Attributes:
        rows: how many rows this side has, touched or not.
        gram: float64 ``[factors, factors]``, the products of all of them.
        slots: how many rows were touched.
        vectors: float32 ``[slots, factors]`` and more.
        partners: int32 ``[slots, recent]`` and more: slots of the other side, the oldest first.
        held: int64 ``[slots]`` and more: how many partners are remembered.
        total: int64 ``[slots]`` and more: how many partners there are.
        anchors: float64 ``[slots, factors]`` and more.
    """

    def __init__(self, objective: Objective, trained: Array, rows: int) -> None:
        self.objective = objective
        self.rows = rows
        self.gram = np.zeros((objective.factors, objective.factors))
        for first in range(0, len(trained), _BLOCK):
            block = trained[first : first + _BLOCK].astype(np.float64)
            self.gram += block.T @ block
        self.slots = 0
        self._room(_ROOM)

    def _room(self, rows: int) -> None:
        d, recent = self.objective.factors, self.objective.recent
        self.vectors = np.zeros((rows, d), np.float32)
        self.partners = np.zeros((rows, recent), np.int32)
        self.held = np.zeros(rows, np.int64)
        self.total = np.zeros(rows, np.int64)
        self.anchors = np.zeros((rows, d))

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

    def touch(self, vector: Array | None, total: int, other: "Side") -> int:
        """A slot for a row.

        Args:
            vector: what training left of it; None: it is new.
            total: how many partners it had in training.
            other: the other side.
        """
        if self.slots == len(self.held):
            kept, slots = self._arrays(), self.slots
            self._room(slots + slots // 2)
            for name, values in kept.items():
                getattr(self, name)[:slots] = values
        slot = self.slots
        self.slots += 1
        if vector is None:
            self.rows += 1
            return slot
        self.vectors[slot], self.total[slot] = vector, total
        self.anchors[slot] = self._unremembered(total, other) @ vector.astype(np.float64)
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
        """Add a partner and solve the row."""
        alpha = self.objective.alpha
        full = self.held[slot] == self.objective.recent
        self.remember(slot, partner)
        near = other.vectors[self.remembered(slot)].astype(np.float64)
        system = self._unremembered(int(self.total[slot]) - len(near), other)
        if full:
            # What is forgotten leaves the row where it is: it was solved with it.
            rest, last = near[:-1], near[-1]
            system += alpha * (rest.T @ rest)
            due = system @ self.vectors[slot].astype(np.float64)
            self.anchors[slot] = due - (1 + alpha) * rest.sum(axis=0)
            system += alpha * np.outer(last, last)
            due += (1 + alpha) * last
        else:
            system += alpha * (near.T @ near)
            due = self.anchors[slot] + (1 + alpha) * near.sum(axis=0)
        found = cast(Array, np.linalg.solve(system, due))
        self.place(slot, found.astype(np.float32))

    def place(self, slot: int, vector: Array) -> None:
        """Give a row another vector; one that is not finite is left."""
        if not np.isfinite(vector).all():
            return
        pair = np.stack([vector, self.vectors[slot]]).astype(np.float64)
        signed = pair.copy()
        signed[1] *= -1
        self.gram += pair.T @ signed
        self.vectors[slot] = vector

    def _unremembered(self, partners: int, other: "Side") -> Array:
        """The system of a row with so many average partners."""
        system = (1 + self.objective.alpha * partners / max(1, other.rows)) * other.gram
        system.flat[:: self.objective.factors + 1] += self.objective.l2
        return system
