"""The probe of recommendations: full ranking over all items, each user asked once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.metric import Metric

if TYPE_CHECKING:
    from drivetrain.core.batch import Batch
    from drivetrain.core.bundle import Bundle


@dataclass(frozen=True)
class Ranking:
    """How good the first ``k`` items are that each user is recommended, of all items there are.

    The bundle is asked once for each user, with the first of their rows in the split; nothing is
    sampled. What counts as right are the different items of the user's rows, also those that
    training did not see and nobody can recommend. With ``n`` of them, as RecBole defines it:

    - ``recall@k``: hits in the list, over ``n``;
    - ``ndcg@k``: the sum of ``1 / log2(place + 1)`` over hits, places from 1, over the same sum
      for the first ``min(k, n)`` places;
    - ``mrr@k``: one over the place of the first hit, 0 without one;
    - ``hit@k``: 1 if there is a hit, else 0;

    each the mean over users, with ``…/low`` and ``…/high``: the 95 % interval of that mean when
    users are drawn anew (bootstrap, percentiles). Of the lists, where the graph holds its catalogue
    (:mod:`drivetrain.core.catalogue`):

    - ``coverage@k``: how many different items are in any list, over all items;
    - ``novelty@k``: the mean self-information of what is listed, ``-log2`` of an item's share of
      all that was had in training, in bits; an item that nobody had counts as had once;
    - ``popularity@k``: the mean of how often what is listed was had in training.

    ``users@k`` is how many were asked. Rows whose user or item is missing do not count. Memory: the
    ``k`` places of each user and 16 bytes for each row, whatever else a row has.

    Attributes:
        k: how many items of a list are looked at.
        user: the raw column that says who is asked for.
        item: the target that says what they had; None takes the bundle's only target.
        recall: the bound of ``recall@k`` that gates promotion.
        ndcg: the bound of ``ndcg@k``.
        output: the prediction ``[rows, k or more]`` of items, the best first.
        resamples: how often users are drawn anew for the intervals; 0 leaves them out.
        seed: of those draws.
    """

    k: int = 20
    user: str = "user"
    item: str | None = None
    recall: float | None = None
    ndcg: float | None = None
    output: str = "items"
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("resamples", 0)):
            if getattr(self, name) < least:
                raise wrong(f"Ranking.{name}", getattr(self, name), f"{least} or more")

    def __call__(self, bundle: "Bundle", batches: Iterable["Batch"]) -> Sequence[Metric]:
        """The metrics, in the order above.

        Raises:
            ValueError: the bundle has no such target or output, or lists fewer than ``k`` items.
        """
        from drivetrain.watch.lists import Lists

        manifest = bundle.manifest
        item = self._item(manifest.targets.names)
        field = next((f for f in manifest.outputs if f.name == self.output), None)
        if field is None:
            raise unknown("output", self.output, manifest.outputs.names, "probe Ranking")
        if len(field.shape) != 1 or (field.shape[0] or self.k) < self.k:
            shown = ["rows", *field.shape]
            raise wrong(f"output {self.output!r}", shown, f"[rows, {self.k} or more]")
        lists = Lists(bundle, self.user, item, self.output, self.k)
        for batch in batches:
            lists.add(batch)
        return lists.metrics(self.resamples, self.seed, {"recall": self.recall, "ndcg": self.ndcg})

    def _item(self, targets: Sequence[str]) -> str:
        if self.item is None:
            if len(targets) != 1:
                allowed = f"item= one of {', '.join(targets) or 'none'}"
                raise wrong("probe Ranking", targets, allowed)
            return targets[0]
        if self.item not in targets:
            raise unknown("target", self.item, targets, "probe Ranking")
        return self.item
