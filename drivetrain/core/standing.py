"""How a model that learns stands beside the one that does not: each event, before it is learnt."""

from dataclasses import dataclass

import numpy as np

from drivetrain.core.batch import Array

COMPARED = 8
"""Items that an event's item is compared with."""
_DRAWN = 2 * COMPARED
"""Items that are drawn, for some of them were had."""


@dataclass(kw_only=True)
class Standing:
    """The progressive AUC of both models: the mean of all events up to ``evidence`` of them, from
    then on one in which an event's weight decays by ``1 / evidence`` with each further one.

    (Gama, Sebastião and Rodrigues, "On evaluating stream learning algorithms", 2013.)

    Attributes:
        guard: by how much the online model may be worse.
        evidence: events before there is a verdict.
        events: how many were compared.
        online: AUC of the model that learns.
        frozen: AUC of the trained one.
    """

    guard: float
    evidence: int
    events: int = 0
    online: float = 0.0
    frozen: float = 0.0

    def add(self, online: float, frozen: float) -> None:
        """Take in the AUC of one event."""
        self.events += 1
        weight = 1 / min(self.events, self.evidence)
        self.online += weight * (online - self.online)
        self.frozen += weight * (frozen - self.frozen)

    @property
    def worse(self) -> bool:
        """Whether the online model is worse than it may be."""
        return self.events >= self.evidence and self.online < self.frozen - self.guard


def drawn(seed: int, event: int, items: int) -> Array:
    """Places below ``items`` by a hash of an event's number, int64 ``[16]``, maybe one twice.

    (SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.)
    """
    start = np.uint64((seed * 0xD1B54A32D192ED03 + event * _DRAWN) % 2**64)
    z = (start + np.arange(1, _DRAWN + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(32)) * np.uint64(items) >> np.uint64(32)).astype(np.int64)


def auc(scores: Array) -> float:
    """The share of the others that the first score is above; an equal one counts half."""
    above, same = scores[0] > scores[1:], scores[0] == scores[1:]
    return float(above.mean() + 0.5 * same.mean())
