"""Tensors that change while runs read them: what a run holds is of one moment, and stays so."""

import threading
from collections.abc import Callable, Mapping

import numpy as np

from drivetrain.core.batch import Array

Places = Array | None
"""Rows of a tensor, int64 ``[n]``; None for all of them."""
_BEHIND = 64
"""Changes that a side which nobody reads may lack: all at once would hold the loop up."""


class Side:
    """The tensors of one moment.

    Attributes:
        arrays: by name; nobody changes them before :meth:`Published.release`.
        readers: how many runs hold it.
    """

    __slots__ = ("_lacks", "arrays", "readers")

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays = arrays
        self.readers = 0
        self._lacks: dict[str, _Lacking] = {}

    def owe(self, changed: Mapping[str, Places]) -> None:
        """Remember rows that have changed since it was the present one."""
        for name, places in changed.items():
            self._lacks.setdefault(name, _Lacking()).add(places, len(self.arrays[name]))

    @property
    def behind(self) -> int:
        """How many changes it lacks."""
        return max((len(lacking.parts) for lacking in self._lacks.values()), default=0)

    def pay(self, source: Mapping[str, Array]) -> None:
        """Be what the source is now."""
        for name, lacking in self._lacks.items():
            here, there = self.arrays[name], source[name]
            if lacking.all:
                np.copyto(here, there)
            for places in lacking.parts:
                here[places] = there[places]
        self._lacks.clear()


class _Lacking:
    """Rows of one tensor that are not as they are now; beyond as many as it has, all of them."""

    __slots__ = ("all", "count", "parts")

    def __init__(self) -> None:
        self.parts: list[Array] = []
        self.count = 0
        self.all = False

    def add(self, places: Places, rows: int) -> None:
        self.count += rows if places is None else len(places)
        if self.all or self.count >= rows:
            self.all = True
            self.parts.clear()
        elif places is not None:
            self.parts.append(places)


class Published:
    """Copies of tensors that one thread changes, for runs on any thread.

    A run holds the side that is the present one when it begins. What changes meanwhile goes into
    another side, which is then the present one, so neither side waits for the other (left-right,
    Ramalhete and Correia 2015). A side is brought up to date by the rows that it lacks. One more
    than there are runs at once is enough; where more are held another one is made, and goes when
    it is free. To make one takes milliseconds for each of its megabytes, as its memory is new.

    :meth:`publish` and :meth:`hold` belong to one thread, :meth:`release` to any.

    Args:
        source: gives the tensors as they are now, rows first.
        sides: that are made at once, on whatever thread this is.
    """

    def __init__(self, source: Callable[[], Mapping[str, Array]], sides: int = 1) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._now = self._copy()
        self._others = [self._copy() for _ in range(sides - 1)]
        self._spare = max(1, sides - 1)

    def _copy(self) -> Side:
        return Side({name: array.copy() for name, array in self._source().items()})

    @property
    def sides(self) -> int:
        """How many copies there are."""
        return 1 + len(self._others)

    @property
    def bytes(self) -> int:
        """The memory of all sides; of text, of its references."""
        return self.sides * sum(array.nbytes for array in self._now.arrays.values())

    def publish(self, changed: Mapping[str, Places]) -> None:
        """Let runs that begin from now on see what the source is now.

        Args:
            changed: by tensor, the rows that differ from what was published before.
        """
        if not changed:
            return
        for side in (self._now, *self._others):
            side.owe(changed)
        with self._lock:
            free = [side for side in (self._now, *self._others) if not side.readers]
        if self._now in free:  # nobody reads it, and only this thread gives it to readers
            self._now.pay(self._source())
        else:
            side = free[0] if free else self._copy()
            side.pay(self._source())
            self._others.append(self._now)
            self._now = side
        spare = [side for side in free if side is not self._now]
        gone = spare[self._spare :]
        self._others = [s for s in self._others if s is not self._now and s not in gone]
        for side in spare[: self._spare]:
            if side.behind > _BEHIND:
                side.pay(self._source())

    def hold(self) -> Side:
        """The tensors of now; to be released."""
        with self._lock:
            self._now.readers += 1
        return self._now

    def release(self, side: Side) -> None:
        """The run has ended."""
        with self._lock:
            side.readers -= 1
