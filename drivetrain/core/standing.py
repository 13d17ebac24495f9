"""How a model that learns stands beside the one that does not: each event, before it is learnt."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from drivetrain.core.batch import Array

COMPARED = 8
"""Items that an event's item is compared with."""
_DRAWN = 2 * COMPARED
"""Items that are drawn, for some of them were had."""
_BLOCK = 256
"""Events that are hashed at once."""


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
    """Places below ``items`` by a hash of an event's number, uint64 ``[16]``, maybe one twice."""
    return _hashes(seed, event // _BLOCK)[event % _BLOCK] * np.uint64(items) >> np.uint64(32)


@lru_cache(maxsize=4)
def _hashes(seed: int, block: int) -> Array:
    """32 bits for each draw of a block of events, uint64 ``[256, 16]``.

    (SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.)
    """
    first = (seed * 0xD1B54A32D192ED03 + block * _BLOCK * _DRAWN) % 2**64
    z = np.arange(1, _BLOCK * _DRAWN + 1, dtype=np.uint64) + np.uint64(first)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(32)).reshape(_BLOCK, _DRAWN)


def auc(scores: list[float]) -> float:
    """The share of the others that the first score is above; an equal one counts half."""
    first = scores[0]
    above = sum(2 if first > other else first == other for other in scores[1:])
    return above / (2 * len(scores) - 2)
