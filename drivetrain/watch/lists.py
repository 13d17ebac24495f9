"""What users were recommended beside what they then had, and how good that was."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drivetrain.core.batch import Array, Batch
from drivetrain.core.bundle import Bundle
from drivetrain.core.catalogue import Catalogue
from drivetrain.core.metric import Metric
from drivetrain.core.schema import MISSING_INT

TOGETHER = 1024
"""Users that a bundle is asked for at once."""
INTERVAL = (2.5, 97.5)


class Numbers:
    """Different values, numbered as they come; -1 is a missing one."""

    def __init__(self) -> None:
        self.known: dict[Any, int] = {}

    def of(self, values: Array) -> Array:
        """The number of each value, int64 of the same shape."""
        flat = values.reshape(-1)
        distinct, inside = np.unique(flat, return_inverse=True)
        numbers = [
            -1
            if value == "" or value == MISSING_INT or value != value
            else self.known.setdefault(value, len(self.known))
            for value in distinct.tolist()
        ]
        return np.array(numbers, np.int64)[inside.reshape(values.shape)]


class Lists:
    """The first places of each user's list, and the items that each had.

    Args:
        bundle: is asked.
        user: the raw column of users.
        item: the target column of items.
        output: the lists.
        k: how many places count.
    """

    def __init__(self, bundle: Bundle, user: str, item: str, output: str, k: int) -> None:
        self._bundle = bundle
        self._inputs = bundle.manifest.inputs.names
        self._user, self._item, self._output, self._k = user, item, output, k
        self._users, self._items = Numbers(), Numbers()
        self._listed: list[Array] = []
        self._had: list[tuple[Array, Array]] = []

    def add(self, batch: Batch) -> None:
        """Take in rows; ask for the users who were not asked for before."""
        before = len(self._users.known)
        users, items = self._users.of(batch[self._user]), self._items.of(batch[self._item])
        both = (users >= 0) & (items >= 0)
        self._had.append((users[both], items[both]))
        fresh = np.flatnonzero(users >= before)
        if len(fresh):
            _, first = np.unique(users[fresh], return_index=True)  # by number: as they are kept
            rows = batch.select(self._inputs)
            for at in range(0, len(first), TOGETHER):
                self._ask(rows.take(fresh[first[at : at + TOGETHER]]))

    def _ask(self, rows: Batch) -> None:
        lists = self._bundle.session.run(rows, [self._output])[self._output]
        self._listed.append(self._items.of(lists[:, : self._k]).astype(np.int32))

    def metrics(
        self, resamples: int, seed: int, at_least: Mapping[str, float | None]
    ) -> Sequence[Metric]:
        """All figures; NaN where no row says anything."""
        figures = _by_user(*self._pairs(), self._k)
        found: list[Metric] = []
        means = {name: float(v.mean()) if len(v) else float("nan") for name, v in figures.items()}
        ranges = _intervals(np.stack([*figures.values()], axis=1), resamples, seed)
        for number, (name, value) in enumerate(means.items()):
            full = f"{name}@{self._k}"
            found.append(Metric(name=full, value=value, at_least=at_least.get(name)))
            if ranges is not None:
                low, high = ranges[:, number].tolist()
                found += [
                    Metric(name=f"{full}/low", value=low),
                    Metric(name=f"{full}/high", value=high),
                ]
        users = float(len(figures["recall"]))
        return [*found, *self._of_catalogue(), Metric(name=f"users@{self._k}", value=users)]

    def _pairs(self) -> tuple[Array, Array, Array]:
        """Lists ``[users, k]`` of those who had something, whose each row of ``had`` is, what."""
        lists = np.concatenate([np.empty((0, self._k), np.int32), *self._listed])
        nothing = (np.empty(0, np.int64), np.empty(0, np.int64))
        users, items = (np.concatenate(side) for side in zip(nothing, *self._had, strict=True))
        some = np.zeros(len(lists), bool)
        some[users] = True
        return lists[some], (np.cumsum(some) - 1)[users], items

    def _of_catalogue(self) -> Sequence[Metric]:
        catalogue = Catalogue.of(self._bundle.graph)
        if catalogue is None:
            return ()
        lists = self._pairs()[0]
        counts = np.zeros(len(self._items.known))
        for value, count in zip(catalogue.items.tolist(), catalogue.counts.tolist(), strict=True):
            number = self._items.known.get(value)
            if number is not None:
                counts[number] = count
        listed = lists[lists >= 0]
        often = counts[listed]
        bits = np.log2(catalogue.counts.sum()) - np.log2(np.maximum(often, 1))
        nothing = float("nan")
        values = {
            "coverage": len(np.unique(listed)) / len(catalogue.items),
            "novelty": float(bits.mean()) if len(bits) else nothing,
            "popularity": float(often.mean()) if len(often) else nothing,
        }
        return [Metric(name=f"{name}@{self._k}", value=value) for name, value in values.items()]


def _by_user(lists: Array, users: Array, items: Array, k: int) -> dict[str, Array]:
    """Each figure for each user, float64 ``[users]``.

    Args:
        lists: int ``[users, k]``, numbers of items or -1 for a place without one.
        users: int64 ``[pairs]``, rows of ``lists``; every user has a pair.
        items: int64 ``[pairs]``, what each had.
        k: places of a list.
    """
    wide = int(max(lists.max(initial=0), items.max(initial=0))) + 1
    right = np.unique(users * wide + items)
    due = np.bincount(right // wide, minlength=len(lists))
    asked = np.arange(len(lists))[:, None] * wide + lists
    place = np.searchsorted(right, asked).clip(max=max(0, len(right) - 1))
    hit = (lists >= 0) & (right[place] == asked) if len(right) else np.zeros(lists.shape, bool)
    # An item that is listed twice is right once.
    flat = asked[hit]
    first = np.zeros(len(flat), bool)
    first[np.unique(flat, return_index=True)[1]] = True
    hit[hit] = first
    gain = 1 / np.log2(np.arange(2, k + 2))
    best = np.cumsum(gain)[np.minimum(due, k) - 1]
    some = hit.any(axis=1)
    found = (hit.sum(axis=1) / due, hit @ gain / best, some / (hit.argmax(axis=1) + 1), some)
    return {
        name: np.asarray(values, np.float64)
        for name, values in zip(("recall", "ndcg", "mrr", "hit"), found, strict=True)
    }


def _intervals(figures: Array, resamples: int, seed: int) -> Array | None:
    """The percentiles of the means when users are drawn anew, ``[2, figures]``.

    Users of equal figures are drawn together, which is the same draw: of many users most had no
    hit at all.
    """
    if not resamples or not len(figures):
        return None
    distinct, times = np.unique(figures, axis=0, return_counts=True)
    random = np.random.default_rng(seed)
    means = np.empty((resamples, figures.shape[1]))
    for number in range(resamples):
        drawn = random.multinomial(len(figures), times / len(figures))
        means[number] = drawn @ distinct / len(figures)
    return np.percentile(means, INTERVAL, axis=0)
