"""The nodes of several methods' scores, made comparable; and weights learnt from rows held out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from drivetrain.core.batch import Array, Batch
from drivetrain.core.graph import Graph
from drivetrain.core.learner_tensors import FINDINGS
from drivetrain.core.seams import Examples
from drivetrain.train.recall.graph import Asked, Scorer, Serving, Several
from drivetrain.train.recall.interactions import Interactions, Sparse, alongside, first_rows
from drivetrain.train.recall.nodes import Nodes

USERS = 4096
"""Whom weights are learnt from; of more some are drawn."""
POOL, LIST, ROUNDS = 200, 50, 3
"""Items that are held of each method's best, those of them that weights are learnt from, and how
often these are chosen anew."""
_TOGETHER = 16
"""Users whose scores of all items are asked for at once."""
_SALT = 0x0F05ED
"""Sets this draw of pairs apart from others that hash them by a seed."""
_STEPS = 50
_PRIOR = 0.02
"""Of a weight's square in the mean likelihood of a user: keeps weights of alike methods apart."""


def fused(
    names: Sequence[str], scorers: Sequence[Scorer], weights: Sequence[float], items: int
) -> Scorer:
    """One scorer of several.

    Args:
        names: of the methods.
        scorers: of them.
        weights: how much each one's standardized scores count.
        items: over which scores are standardized.
    """
    live = [each.live for each in scorers if each.live]
    assert len(live) < 2, "one method at most learns while it serves"
    learns = live[0] if live else {}  # what it finds by itself is not what the sum does

    def parts(n: Nodes, asked: Asked) -> Sequence[str]:
        found: list[str] = []
        for each in scorers:
            own = asked if each.weighted else replace(asked, weights="")
            found.append(_standardized(n, each.score(n, own), items))
        return found

    several = Several(tuple(names), tuple(weights), parts)
    return Scorer(
        score=lambda n, asked: several.sum(n, several.parts(n, asked)),
        part=min(each.part for each in scorers),
        weighted=any(each.weighted for each in scorers),
        rows=tuple({f.name: f for each in scorers for f in each.rows}.values()),
        live={name: array for name, array in learns.items() if name not in FINDINGS},
        several=several,
    )


def _standardized(n: Nodes, scores: str, items: int) -> str:
    """Scores less the mean of a row's items, by their deviation; all 0 where they are all equal."""
    last = n.ints(1)
    real = n.op("Slice", scores, n.ints(0), n.ints(items), last)
    mean = n.op("ReduceMean", real, last, keepdims=1)
    apart = n.op("Sub", real, mean)
    square = n.op("ReduceMean", n.op("Mul", apart, apart), last, keepdims=1)
    some = n.op("Max", n.op("Sqrt", square), n.held(np.array(1e-12, np.float32)))
    return n.op("Div", n.op("Sub", scores, mean), some)


@dataclass(frozen=True, eq=False)
class Trial:
    """Training pairs without a part of them, which is held out to learn from.

    Attributes:
        kept: what methods are fitted on for the trial.
        out: what was held out, users by items.
    """

    kept: Interactions
    out: Sparse

    @classmethod
    def of(cls, found: Interactions, share: float, seed: int) -> "Trial":
        """Hold out each pair with the probability ``share``; a hash of the pair decides.

        No user loses all: of those who would, everything is kept.
        """
        had = found.had
        user = np.repeat(np.arange(had.rows), had.lengths)
        out = drawn(user, had.columns, seed) < share
        lost = np.bincount(user[out], minlength=had.rows) == had.lengths
        out &= ~lost[user]
        counts = found.counts - np.bincount(had.columns[out], minlength=had.wide)
        kept = replace(found, counts=counts, had=_chosen(had, user, ~out))
        return cls(kept, _chosen(had, user, out))

    def weights(
        self, source: Examples, column: int, served: Serving, names: Sequence[str],
        scorers: Sequence[Scorer], seed: int,
    ) -> Array:  # fmt: skip
        """The weights under which what was held out is likeliest, float64 ``[methods]``.

        Args:
            source: its training rows say as of when users are asked.
            column: the users' column of the tensor ``index``.
            served: how the methods are asked.
            names: of the methods.
            scorers: fitted on :attr:`kept`.
            seed: of the draw of users.
        """
        items = len(self.kept.catalogue)
        known = np.flatnonzero(self.out.lengths)
        if len(known) > USERS:
            nothing = np.zeros(len(known), np.int64)
            known = known[np.argsort(drawn(known, nothing, seed + 1), kind="stable")[:USERS]]
        scorer = fused(names, scorers, [1.0] * len(names), items)
        return learnt([*self._lists(source, column, served, scorer, np.sort(known))], len(names))

    def _lists(
        self, source: Examples, column: int, served: Serving, scorer: Scorer, users: Array
    ) -> Iterator["List"]:
        """For each user the standardized scores of what they lacked, as of their first row."""
        graph: Graph = served.scored(self.kept, scorer)
        session = graph.session()
        waits = np.zeros(self.out.rows, bool)
        waits[users] = True
        for tensors, raw in alongside(source, "train"):
            user = tensors["index"][:, column]
            at = first_rows(user, waits)
            for first in range(0, len(at), _TOGETHER):
                some = at[first : first + _TOGETHER]
                given = {n: (tensors if n in tensors else raw)[n][some] for n, _ in session.inputs}
                parts = session.run(Batch(given))["parts"]
                for who, part in zip(user[some], parts, strict=True):
                    yield self._list(int(who), part)

    def _list(self, user: int, parts: Array) -> "List":
        had, out = (each.columns[each.starts[user] : each.starts[user + 1]]
                    for each in (self.kept.had, self.out))  # fmt: skip
        left = np.ones(parts.shape[1], bool)
        left[had] = False
        scores = parts[:, left].T
        best = np.argsort(-scores, axis=0, kind="stable")[:POOL]
        pool = np.unique(best)
        wanted = np.zeros(parts.shape[1], bool)
        wanted[out] = True
        return List(np.ascontiguousarray(scores[pool]), np.flatnonzero(wanted[left][pool]))


@dataclass(frozen=True, eq=False)
class List:
    """What one user could have had.

    Attributes:
        scores: float32 ``[items, methods]``, standardized.
        had: places among them: what they then had.
    """

    scores: Array
    had: Array

    def best(self, weights: Array) -> "List":
        """The :data:`LIST` items that are first by their weighted sums."""
        places = np.sort(np.argsort(-(self.scores @ weights), kind="stable")[:LIST])
        return List(self.scores[places], np.flatnonzero(np.isin(places, self.had)))


def learnt(pools: Sequence[List], methods: int) -> Array:
    """The weights under which what users had comes before what else would be shown to them.

    Of all items a softmax says how likely each is, but most of the likelihood is then about items
    that nobody is ever shown. So it is taken over the best of a list, by equal weights first and
    then by those found. Where nothing was had among them, all methods count alike.
    """
    weights = np.ones(methods)
    for _ in range(ROUNDS):
        lists = [best for pool in pools if len((best := pool.best(weights)).had)]
        if not lists:
            return weights
        weights = likeliest(lists)
    return weights


def likeliest(lists: Sequence[List]) -> Array:
    """The weights under which what users had is likeliest, float64 ``[methods]``.

    Each list is a softmax over the weighted sums of its scores, of which what was had was drawn;
    users count alike. The likelihood is concave (McFadden 1974), so that Newton's steps, halved
    until they climb, find the one maximum.
    """
    methods = lists[0].scores.shape[1]
    weights = np.zeros(methods)
    value, slope, bend = _likelihood(lists, weights)
    for _ in range(_STEPS):
        step = np.linalg.solve(bend, slope)
        if slope @ step < 1e-10:
            break
        far = 1.0
        while True:
            tried = _likelihood(lists, weights + far * step)
            if tried[0] >= value or far < 1e-6:
                break
            far /= 2
        weights = weights + far * step
        value, slope, bend = tried
    return weights


def _likelihood(lists: Sequence[List], weights: Array) -> tuple[float, Array, Array]:
    """The mean log-likelihood of a user's items less the prior, its gradient, and the negative of
    its second derivatives."""
    methods = len(weights)
    value = -_PRIOR * float(weights @ weights)
    slope = -2 * _PRIOR * weights
    bend = 2 * _PRIOR * np.eye(methods)
    for each in lists:
        scores = each.scores.astype(np.float64)
        sums = scores @ weights
        top = sums.max()
        likely = np.exp(sums - top)
        whole = likely.sum()
        likely /= whole
        mean = likely @ scores
        share = 1 / len(lists)
        value += share * float((sums[each.had] - top - np.log(whole)).mean())
        slope += share * (scores[each.had].mean(axis=0) - mean)
        bend += share * ((scores * likely[:, None]).T @ scores - np.outer(mean, mean))
    return value, slope, bend


def drawn(user: Array, place: Array, seed: int) -> Array:
    """Where pairs lie between 0 and 1: float64 of a seeded hash (SplitMix64; Steele 2014)."""
    mixed = user.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed += place.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
    mixed += np.uint64((seed ^ _SALT) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def _chosen(had: Sparse, user: Array, which: Array) -> Sparse:
    starts = np.zeros(had.rows + 1, np.int64)
    np.cumsum(np.bincount(user[which], minlength=had.rows), out=starts[1:])
    return Sparse(starts, had.columns[which], had.weights[which], had.wide)
