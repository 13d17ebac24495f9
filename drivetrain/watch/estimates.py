"""Estimators of what a policy earns, from rounds in which another one acted.

Inverse propensity scores: Horvitz and Thompson (1952); as weighted, clipped rounds of a log: Bottou
et al. (JMLR 2013). Self-normalized: Swaminathan and Joachims (NeurIPS 2015). Doubly robust: Dudík,
Langford and Li (ICML 2011), place by place along a list: Jiang and Li (ICML 2016). Switch: Wang,
Agarwal and Dudík (ICML 2017). Lists whose places hang on those before: McInerney et al. (KDD 2020).
"""

from dataclasses import dataclass

import numpy as np

from drivetrain.core.batch import Array

INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A figure, and its 95 % interval; NaN where there is none."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True, eq=False)
class Rounds:
    """What was done and what came of it, beside what a new policy would do.

    A round is a list of places, float64 ``[rounds, places]`` each; a single action is a list of
    one. A place where nothing was done has the reward 0 and the probabilities of the place before.

    Attributes:
        reward: what came of each place.
        logged: how likely the log's policy was to do what it did, down to this place; above 0.
        policy: how likely the new one is to do the same, down to this place.
        predicted: the reward that a model expects of what was done.
        expected: the reward that it expects of what the new policy does there, where the places
            before are those of the log.
    """

    reward: Array
    logged: Array
    policy: Array
    predicted: Array
    expected: Array

    @property
    def weights(self) -> Array:
        """How much likelier each place is under the new policy, float64 ``[rounds, places]``."""
        return self.policy / self.logged


def estimate(
    rounds: Rounds,
    *,
    clip: float | None = None,
    switch: float | None = None,
    clusters: Array | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """The value of a round under the new policy: ``logged``, ``ips``, ``snips``, ``dr``,
    ``switch_dr`` (with ``switch``) and ``lift``.

    Args:
        rounds: the log.
        clip: the largest weight.
        switch: the largest weight that ``switch_dr`` corrects by.
        clusters: int64 ``[rounds]`` from 0 up: rounds that are drawn together; None draws each by
            itself.
        resamples: bootstrap draws; 0 gives no intervals.
        seed: of the draws.
    """
    sums = _sums(rounds, clip, switch)
    places = rounds.reward.shape[1]
    if clusters is not None:
        whole = np.zeros((int(clusters.max(initial=-1)) + 1, sums.shape[1]))
        np.add.at(whole, clusters, sums)
        sums = whole
    values = _figures(sums.sum(axis=0)[None], places, switch is not None)
    ranges = dict.fromkeys(values, (float("nan"), float("nan")))
    if resamples and len(sums):
        ranges = _ranges(sums, places, switch is not None, resamples, seed)
    return {name: Estimate(float(value[0]), *ranges[name]) for name, value in values.items()}


def _sums(rounds: Rounds, clip: float | None, switch: float | None) -> Array:
    """What the estimators are ratios of sums of, for each round: one, the reward, the corrected
    model's value without and with a switch, then each place's weight and weighted reward."""
    weights = rounds.weights
    clipped = weights if clip is None else np.minimum(weights, clip)
    before = np.concatenate([np.ones((len(weights), 1)), clipped[:, :-1]], axis=1)
    expected = np.where(before > 0, before * rounds.expected, 0)
    error = clipped * (rounds.reward - rounds.predicted)
    kept = error if switch is None else np.where(weights <= switch, error, 0)
    one = np.ones(len(weights))
    parts = (one, rounds.reward.sum(axis=1), (expected + error).sum(axis=1))
    return np.column_stack(
        [*parts, (expected + kept).sum(axis=1), clipped, clipped * rounds.reward]
    )


def _figures(sums: Array, places: int, switched: bool) -> dict[str, Array]:
    """The estimates of some sums ``[n, columns]``, ``[n]`` each."""
    rounds, earned, robust, switching = sums[:, :4].T
    weights, rewards = sums[:, 4 : 4 + places], sums[:, 4 + places :]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "logged": earned / rounds,
            "ips": rewards.sum(axis=1) / rounds,
            "snips": (rewards / weights).sum(axis=1),
            "dr": robust / rounds,
            "switch_dr": switching / rounds,
            "lift": (robust - earned) / rounds,
        }
    if not switched:
        del found["switch_dr"]
    return found


def _ranges(
    sums: Array, places: int, switched: bool, resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """The percentiles when clusters are drawn anew, where a draw defines the figure."""
    random, count = np.random.default_rng(seed), len(sums)
    drawn = np.empty((resamples, sums.shape[1]))
    for number in range(resamples):
        times = np.bincount(random.integers(0, count, count), minlength=count)
        drawn[number] = times @ sums
    found: dict[str, tuple[float, float]] = {}
    for name, values in _figures(drawn, places, switched).items():
        known = values[np.isfinite(values)]
        low, high = np.percentile(known, INTERVAL) if len(known) else (np.nan, np.nan)
        found[name] = (float(low), float(high))
    return found


def effective(weights: Array) -> float:
    """How many rounds of one weight would tell as much (Kish 1965), of weights ``[rounds]``."""
    squares = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


class RewardModel:
    """The mean reward of each action at each place, out-of-fold, drawn towards the place's.

    An estimate for a round never saw the round's own fold, so that the doubly robust estimator
    stays unbiased (cross-fitting: Chernozhukov et al. 2018).

    Args:
        actions: int64 ``[rounds, places]``, numbers of what was done; -1 for nothing.
        reward: float64 ``[rounds, places]``.
        at: int64 ``[rounds, places]``: which place each is.
        folds: int64 ``[rounds]``, from 0 up.
        sizes: how many folds, places and actions there are.
        strength: how many rounds the place's mean counts as.
    """

    def __init__(
        self,
        actions: Array,
        reward: Array,
        at: Array,
        folds: Array,
        sizes: tuple[int, int, int],
        strength: float,
    ) -> None:
        done = actions >= 0
        flat = np.ravel_multi_index(
            (np.broadcast_to(folds[:, None], actions.shape)[done], at[done], actions[done]), sizes
        )
        cells = int(np.prod(sizes))
        total = np.bincount(flat, reward[done], cells).reshape(sizes)
        count = np.bincount(flat, minlength=cells).reshape(sizes)
        total, count = (each.sum(axis=0) - each for each in (total, count))  # of the other folds
        rounds = count.sum(axis=2, keepdims=True)
        mean = total.sum(axis=2, keepdims=True) / np.maximum(rounds, 1)
        self._table = (total + strength * mean) / np.maximum(count + strength, 1e-9)
        self._folds = folds

    def of(self, actions: Array, at: Array) -> Array:
        """What is expected of an action in each round, float64 ``[rounds, places]``; 0 of none.

        Args:
            actions: int64 ``[rounds, places]``.
            at: int64 ``[rounds, places]``: which place each is.
        """
        found = self._table[self._folds[:, None], at, np.maximum(actions, 0)]
        return np.where(actions >= 0, found, 0)

    def all_of(self, at: Array, rounds: slice) -> Array:
        """What is expected of every action in some rounds, float64 ``[rounds, actions]``.

        Args:
            at: int64 ``[all rounds]``: which place each is.
            rounds: which.
        """
        return self._table[self._folds[rounds], at[rounds]]
