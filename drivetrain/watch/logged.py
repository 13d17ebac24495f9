"""A log of actions and their propensities, read beside what a bundle would have done."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from drivetrain.core.batch import Array, Batch
from drivetrain.core.bundle import Bundle
from drivetrain.core.catalogue import Catalogue
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.metric import Metric
from drivetrain.core.schema import Field
from drivetrain.core.values import missing_number
from drivetrain.watch.estimates import RewardModel, Rounds, effective, estimate
from drivetrain.watch.lists import Numbers

if TYPE_CHECKING:
    from drivetrain.watch.off_policy import OffPolicy

TOGETHER = 1024
"""Rows that a bundle is asked for at once."""
ROUNDING = 1e-3
"""By how much probabilities may miss 1 in sum: they come as float32."""
LEAST = 1e-300
"""What the product of a long list's propensities is at least, lest it be 0."""
DOUBT = 6.0
"""Standard errors that the mean of 1 / propensity may lie above the number of actions."""


class Log:
    """Rounds of a log, a batch at a time.

    Args:
        bundle: is asked.
        probe: what is what.

    Raises:
        ValueError: the bundle has no such output, or one of another shape.
    """

    def __init__(self, bundle: Bundle, probe: "OffPolicy") -> None:
        self._bundle, self._probe = bundle, probe
        self._inputs = bundle.manifest.inputs
        outputs = bundle.manifest.outputs
        name = probe.output if probe.policy is None else probe.policy
        if name not in outputs:
            raise unknown("output", name, outputs.names, "probe OffPolicy")
        if probe.seed is not None and probe.seed not in self._inputs:
            raise unknown("column", probe.seed, self._inputs.names, "OffPolicy.seed")
        self._output = outputs.field(name)
        most = 1 if probe.policy is None else 2
        if len(self._output.shape) > most or (probe.policy and not self._output.shape):
            allowed = "[rows, actions] or [rows, places, actions]" if probe.policy else "[rows, k]"
            raise wrong(f"output {name!r}", ["rows", *self._output.shape], allowed)
        self._drawing = "propensities" if "propensities" in outputs and not probe.policy else ""
        self._draws = np.random.default_rng((probe.random, 1))
        self._items, self._users = Numbers(), Numbers()
        self._known = self._actions()
        self._done: list[Array] = []  # int64 [rows, places], -1 for nothing
        self._at: list[Array] = []
        self._reward: list[Array] = []
        self._logged: list[Array] = []
        self._new: list[Array] = []  # int32 [rows, draws, places], or float32 [rows, actions]
        self._who: list[Array] = []

    def _actions(self) -> Array | None:
        """The numbers of the actions that the policy's columns are of."""
        catalogue = Catalogue.of(self._bundle.graph)
        if catalogue is not None:
            return self._items.of(catalogue.items)
        if self._probe.policy is not None:
            return self._items.of(np.arange(self._output.shape[-1] or 0))
        return None

    # -- reading -----------------------------------------------------------------------------------

    def add(self, batch: Batch) -> None:
        """Take in rows, and ask what the bundle would do.

        Raises:
            ValueError: a column is absent, of another shape, or holds what cannot be.
        """
        probe = self._probe
        done = self._items.of(batch[probe.action])
        shaped = done.ndim > 1
        done = done.reshape(len(batch), -1)
        at = self._places(batch, done, shaped)
        logged = self._propensities(batch, done)
        reward = self._rewards(batch, done)
        done, at, logged, reward = (each[:, : probe.k] for each in (done, at, logged, reward))
        rows = np.flatnonzero((done >= 0).any(axis=1))
        if not len(rows):
            return
        done, at, logged, reward = (each[rows] for each in (done, at, logged, reward))
        self._done.append(done)
        self._at.append(at)
        self._logged.append(np.where(done >= 0, logged, 1.0))
        self._reward.append(np.where(done >= 0, reward, 0.0))
        if probe.user is not None:
            self._who.append(self._users.of(batch[probe.user])[rows])
        asked = batch.select(self._inputs.names).take(rows)
        for start in range(0, len(rows), TOGETHER):
            part = slice(start, start + TOGETHER)
            self._new.append(self._asked(asked.slice(start, start + TOGETHER), at[part]))

    def _places(self, batch: Batch, done: Array, shaped: bool) -> Array:
        name = self._probe.position
        if name is None:
            return np.broadcast_to(np.arange(done.shape[1]), done.shape)
        if shaped:
            raise wrong("OffPolicy.position", name, f"None, for {self._probe.action!r} is a list")
        found = np.asarray(batch[name], np.float64)
        bad = (done[:, 0] >= 0) & ~((found >= 1) & (found % 1 == 0) & (found < 2**31))
        if bad.any():
            raise wrong(f"column {name!r}", float(found[bad][0]), "a place, from 1")
        return np.where(done[:, 0] >= 0, found, 1).astype(np.int64)[:, None] - 1

    def _propensities(self, batch: Batch, done: Array) -> Array:
        name = self._probe.propensity
        found = np.asarray(batch[name], np.float64).reshape(len(batch), -1)
        where = f"column {name!r}"
        if found.shape != done.shape:
            raise wrong(where, list(found.shape), f"{list(done.shape)}, as {self._probe.action!r}")
        there = done >= 0
        bad = there & ~((found > 0) & (found <= 1 + ROUNDING))
        if bad.any():
            value = float(found[bad][0])
            shown = "nothing" if value != value else value
            raise wrong(
                f"{where}, {int(bad.sum())} of {int(there.sum())}",
                shown,
                "the probability of what was done, above 0 and at most 1; without it nothing can "
                "be learnt about what was not done",
            )
        return np.minimum(found, 1.0)

    def _rewards(self, batch: Batch, done: Array) -> Array:
        probe = self._probe
        if probe.chosen is not None:
            right = self._items.of(batch[probe.chosen]).reshape(len(batch), -1)
            if right.shape[1] != 1:
                raise wrong(f"column {probe.chosen!r}", list(right.shape), "one action a row")
            return ((done == right) & (done >= 0)).astype(np.float64)
        column = batch[probe.reward or ""]
        if column.dtype == object:
            raise wrong(f"column {probe.reward!r}", "strings", "numbers")
        missing = missing_number(Field("", "int64")) if column.dtype.kind == "i" else np.nan
        found = np.where((column == missing) | (column != column), 0, column).astype(np.float64)
        if not np.isfinite(found).all():
            raise wrong(f"column {probe.reward!r}", "an infinite reward", "finite numbers")
        found = found.reshape(len(batch), -1)
        if found.shape == done.shape:
            return found
        if found.shape[1] != 1:
            raise wrong(f"column {probe.reward!r}", list(found.shape), f"{list(done.shape)}")
        # What came of the whole list is due at its last place that counts.
        there = done[:, : probe.k] >= 0
        last = there.shape[1] - 1 - there[:, ::-1].argmax(axis=1)
        return np.where(np.arange(done.shape[1]) == last[:, None], found, 0)

    # -- asking ------------------------------------------------------------------------------------

    def _asked(self, rows: Batch, at: Array) -> Array:
        if self._probe.policy is not None:
            return self._policy(rows, at)
        return np.stack([self._list(rows, at, n) for n in range(max(1, self._probe.draws))], axis=1)

    def _list(self, rows: Batch, at: Array, number: int) -> Array:
        """The bundle's actions at the logged places, int32 ``[rows, places]``; -1 for none."""
        if self._probe.seed is not None:
            rows = rows.with_columns({self._probe.seed: self._names(len(rows), number)})
        wanted = [self._output.name, *filter(None, [self._drawing])]
        answer = self._bundle.session.run(rows, wanted)
        if self._drawing and self._probe.seed is None:
            found = answer[self._drawing]
            if ((found != 1) & (found == found)).any():
                allowed = "seed= the column that Explore(by=…) reads"
                raise wrong("OffPolicy, a bundle that draws its lists", "no seed", allowed)
        actions = self._items.of(answer[self._output.name]).reshape(len(rows), -1)
        if at.max() >= actions.shape[1]:
            found, most = int(at.max()) + 1, actions.shape[1]
            raise wrong("OffPolicy, a logged place", found, f"{most} or less, as the bundle lists")
        return np.take_along_axis(actions, at, axis=1).astype(np.int32)

    def _names(self, rows: int, number: int) -> Array:
        """What stands in the column of requests' names: nothing, or names that nobody had."""
        field = self._inputs.field(self._probe.seed or "")
        text = field.numpy == "object"
        if not self._probe.draws:
            nothing = b"" if field.dtype == "bytes" else "" if text else missing_number(field)
            return np.full(rows, nothing, field.numpy)
        drawn = self._draws.integers(1, 2**62, rows)
        if not text:
            return drawn.astype(field.numpy)
        names = [f"off-policy {number} {value}" for value in drawn.tolist()]
        return np.array([n.encode() if field.dtype == "bytes" else n for n in names], object)

    def _policy(self, rows: Batch, at: Array) -> Array:
        """How likely each action is at the logged place, float32 ``[rows, actions]``."""
        name = self._output.name
        found = self._bundle.session.run(rows, [name])[name].astype(np.float32)
        if at.shape[1] > 1:
            raise wrong("OffPolicy.policy", name, "None where a row is a list of actions")
        if found.ndim == 3:
            if at.max() >= found.shape[1]:
                where = "OffPolicy, a logged place"
                raise wrong(where, int(at.max()) + 1, f"{found.shape[1]} or less, as {name!r} has")
            found = found[np.arange(len(rows)), at[:, 0]]
        assert self._known is not None
        if found.shape[1] != len(self._known):
            count = f"{len(self._known)} actions, as the catalogue has"
            raise wrong(f"output {name!r}", list(found.shape), count)
        sums = found.sum(axis=1, dtype=np.float64)
        bad = ~((found >= 0).all(axis=1) & (np.abs(sums - 1) <= ROUNDING))
        if bad.any():
            shown = f"a sum of {sums[bad][0]:g}, the least {found[bad][0].min():g}"
            raise wrong(f"output {name!r}", shown, "probabilities that sum to 1")
        return found

    # -- what it says ------------------------------------------------------------------------------

    def metrics(self) -> Sequence[Metric]:
        """All figures.

        Raises:
            ValueError: the propensities cannot sum to 1 over the actions there are.
        """
        probe = self._probe
        if not self._done:
            return self._named({}, {})
        if len({each.shape[1] for each in self._done}) > 1:
            raise wrong(f"column {probe.action!r}", "lists of several lengths", "one length")
        done, at, reward, each = map(
            np.concatenate, (self._done, self._at, self._reward, self._logged)
        )
        self._hold(done, each)
        clusters = self._clusters(len(done))
        folds = np.random.default_rng((probe.random, 2)).permutation(int(clusters.max()) + 1)
        folds = (folds % probe.folds)[clusters]
        sizes = (probe.folds, int(at.max()) + 1, len(self._items.known))
        model = RewardModel(done, reward, at, folds, sizes, probe.strength)
        new = np.concatenate(self._new)
        if probe.policy is None:
            policy, expected = _followed(new, done, at, model)
        else:
            policy, expected = self._likely(new, done, at, model)
        logged = np.maximum(np.cumprod(each, axis=1), LEAST)
        rounds = Rounds(reward, logged, policy, model.of(done, at), expected)
        found = estimate(
            rounds,
            clip=probe.clip,
            switch=probe.switch,
            clusters=clusters,
            resamples=probe.resamples,
            seed=probe.random,
        )
        weights = rounds.weights[:, -1]
        figures = {
            "effective": effective(weights),
            "uncovered": float((rounds.policy[:, -1] == 0).mean()),
            "largest": float(rounds.weights.max()),
            "mean_weight": float(weights.mean()),
            "rows": float(len(done)),
        }
        values: dict[str, float] = {}
        for name, value in found.items():
            values[name] = value.value
            if probe.resamples:
                values |= {f"{name}/low": value.low, f"{name}/high": value.high}
        return self._named(values, figures)

    def _named(self, values: dict[str, float], figures: dict[str, float]) -> Sequence[Metric]:
        probe = self._probe
        bounds = {"dr": probe.at_least, "dr/low": probe.low_at_least}
        nothing = float("nan")
        found = (
            {**values, **figures} if figures else {"dr": nothing, "dr/low": nothing, "rows": 0.0}
        )
        return [
            Metric(name=f"off_policy/{name}", value=value, at_least=bounds.get(name))
            for name, value in found.items()
        ]

    def _hold(self, done: Array, logged: Array) -> None:
        """Hold propensities against the number of actions: 1 / propensity has it as its mean."""
        if self._known is None or done.max() >= len(self._known):
            return  # the log's policy had other actions, nobody knows how many
        for place in range(done.shape[1]):
            inverse = 1 / logged[done[:, place] >= 0, place]
            if len(inverse) < 2:
                continue
            mean, error = float(inverse.mean()), float(inverse.std() / np.sqrt(len(inverse)))
            if mean - DOUBT * error > len(self._known) * (1 + ROUNDING):
                raise wrong(
                    f"column {self._probe.propensity!r}, the mean of 1 / propensity",
                    round(mean, 1),
                    f"{len(self._known)} or less, for over so many actions they sum to 1",
                )

    def _clusters(self, rows: int) -> Array:
        """Which rows are drawn together, numbered as they come; nobody's are by themselves."""
        if self._probe.user is None:
            return np.arange(rows)
        who = np.concatenate(self._who)
        nobody = who < 0
        who = np.where(nobody, len(self._users.known) + np.cumsum(nobody), who)
        _, first, inside = np.unique(who, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[inside]

    def _likely(
        self, new: Array, done: Array, at: Array, model: RewardModel
    ) -> tuple[Array, Array]:
        """The probability of what was done, and the reward that is expected of the policy."""
        assert self._known is not None
        column = np.full(len(self._items.known) + 1, -1)
        column[self._known] = np.arange(len(self._known))
        where = column[done[:, 0]]
        policy = np.where(where >= 0, new[np.arange(len(new)), where], 0).astype(np.float64)
        expected = np.empty(len(new))
        for start in range(0, len(new), TOGETHER):
            part = slice(start, start + TOGETHER)
            each = model.all_of(at[:, 0], part)[:, self._known]
            expected[part] = (new[part] * each).sum(axis=1)
        return policy[:, None], expected[:, None]


def _followed(new: Array, done: Array, at: Array, model: RewardModel) -> tuple[Array, Array]:
    """The share of draws that agree with what was done down to each place, and the reward that is
    expected of the next place of those that agreed before it; float64 ``[rows, places]`` each."""
    policy, expected, before = (np.zeros(done.shape) for _ in range(3))
    for number in range(new.shape[1]):
        actions = new[:, number].astype(np.int64)
        agree = np.cumprod((actions == done) | (done < 0), axis=1)
        ahead = np.concatenate([np.ones((len(done), 1)), agree[:, :-1]], axis=1)
        policy += agree
        before += ahead
        expected += ahead * model.of(np.where(done >= 0, actions, -1), at)
    return policy / new.shape[1], expected / np.maximum(before, 1)
