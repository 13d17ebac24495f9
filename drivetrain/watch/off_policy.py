"""The probe of a policy that nobody has followed yet, on a log of what another one did."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.core.errors import wrong
from drivetrain.core.metric import Metric

if TYPE_CHECKING:
    from drivetrain.core.batch import Batch
    from drivetrain.core.bundle import Bundle


@dataclass(frozen=True, kw_only=True)
class OffPolicy:
    """What a bundle's answers would have earned, estimated from what others' answers earned.

    A row of the log is one action that was taken, how likely it was, and what came of it. Or it
    is a list of them: then ``action`` and ``propensity`` have the shape ``[k]``, a propensity is
    that of a place given those before it, and what comes of a place hangs on it and those before
    (McInerney et al., KDD 2020), so that its weight is the product down to it. Places without an
    action, and rows without any, do not count. A reward that is missing is 0: nothing came of it.

    The bundle is asked with the contexts of the log. Its policy is its list: the action of a place
    is what stands there. A bundle that draws its lists (``Explore``) is asked with ``seed``, the
    raw column of what names a request, set to missing, when it draws nothing; or, with ``draws``,
    so often under fresh names. The logged names would repeat the very draw that was logged, as if
    no other had been possible. With ``policy`` the bundle itself says how likely each action is.

    - ``off_policy/logged``: what a row of the log earned;
    - ``off_policy/ips``: inverse propensity scores, the mean of ``w * reward`` where the weight
      ``w`` is the action's probability under the bundle over its propensity;
    - ``off_policy/snips``: self-normalized, over the sum of the weights instead of the rows;
    - ``off_policy/dr``: doubly robust: what a model of the reward expects, corrected by weighted
      errors of the model. The model is out-of-fold: for each action and place the mean reward in
      the other folds, drawn towards the place's;
    - ``off_policy/switch_dr``: the same without corrections of a weight above ``switch``;
    - ``off_policy/lift``: ``dr`` less ``logged``.

    Each has ``…/low`` and ``…/high``, the 95 % interval when users (without ``user`` rows) are
    drawn anew (bootstrap, percentiles, seeded). Sources: :mod:`drivetrain.watch.estimates`.

    How far to believe it say

    - ``off_policy/effective``: how many rows of equal weight would tell as much (Kish 1965);
    - ``off_policy/uncovered``: the share of rows whose actions the bundle would never take;
    - ``off_policy/largest``: the largest weight;
    - ``off_policy/mean_weight``: 1, but for chance, where the log could take all that the bundle
      takes; what is missing to 1 was never seen by anybody;
    - ``off_policy/rows``: how many there are.

    Memory: about 50 bytes for each place of a row, 4 for each of ``draws``; with ``policy`` 4 bytes
    for each action of each row.

    Attributes:
        reward: the column of numbers that came of the actions, for each row or each place; a
            single one of a list is that of its last place, so that the whole list must agree.
        chosen: instead of it: the column that says which action of a list was the right one, of
            the actions' own type; it earns 1.
        action: the column of what was done.
        propensity: the column of how likely that was, above 0 and at most 1.
        position: the column of an action's place, from 1; None is the first. Not of lists.
        k: how many places of a list count, the first ones; None takes all. The fewer, the more
            lists agree.
        user: the column of whose rows belong together.
        output: the prediction of the bundle's actions, ``[rows]`` or ``[rows, k]``.
        policy: instead of it: the prediction of how likely each action is, ``[rows, actions]`` or
            ``[rows, places, actions]``; actions are those of the graph's catalogue, or else
            numbered from 0.
        seed: the raw column that ``Explore(by=…)`` reads, or one of them.
        draws: how often a bundle that draws is asked; 0 asks for what it would not draw.
        clip: the largest weight, beyond which it is cut: less variance, and a bias downwards.
        switch: the largest weight that ``switch_dr`` corrects by; None leaves it out.
        folds: of the reward model.
        strength: how many rows the place's mean counts as in the model.
        at_least: the bound of ``off_policy/dr`` that gates promotion.
        low_at_least: the bound of ``off_policy/dr/low``.
        resamples: how often users are drawn anew; 0 leaves the intervals out.
        random: the seed of all draws.
    """

    reward: str | None = None
    chosen: str | None = None
    action: str = "item"
    propensity: str = "propensity"
    position: str | None = None
    k: int | None = None
    user: str | None = None
    output: str = "items"
    policy: str | None = None
    seed: str | None = None
    draws: int = 0
    clip: float | None = None
    switch: float | None = None
    folds: int = 5
    strength: float = 20.0
    at_least: float | None = None
    low_at_least: float | None = None
    resamples: int = 1000
    random: int = 0

    def __post_init__(self) -> None:
        for name, least in (("draws", 0), ("folds", 2), ("strength", 0), ("resamples", 0)):
            if not getattr(self, name) >= least:
                raise wrong(f"OffPolicy.{name}", getattr(self, name), f"{least} or more")
        if self.k is not None and self.k < 1:
            raise wrong("OffPolicy.k", self.k, "1 or more, or None")
        for name in ("clip", "switch"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise wrong(f"OffPolicy.{name}", value, "above 0, or None")
        if (self.reward is None) == (self.chosen is None):
            raise wrong("OffPolicy", f"{self.reward=}, {self.chosen=}", "one of the two")
        if self.draws and self.seed is None:
            raise wrong("OffPolicy.draws", self.draws, "0 without seed=")
        if self.policy is not None and self.seed is not None:
            raise wrong("OffPolicy.seed", self.seed, "None with policy=, which draws nothing")

    def __call__(self, bundle: "Bundle", batches: Iterable["Batch"]) -> Sequence[Metric]:
        """The metrics, in the order above; NaN where no row says anything.

        Raises:
            ValueError: a column or an output is absent or of another type or shape; a propensity is
                missing, 0 or below, above 1, or they cannot sum to 1; a probability of the policy
                is none; or the bundle draws its lists and ``seed`` says not by what.
        """
        from drivetrain.watch.logged import Log

        log = Log(bundle, self)
        for batch in batches:
            if len(batch):
                log.add(batch)
        return log.metrics()
