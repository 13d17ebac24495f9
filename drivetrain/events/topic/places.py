"""How a topic's offsets are named in the tables that are written from it."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Places:
    """The names under which a table keeps the positions of one topic's partitions.

    A topic that was deleted and made anew under its name begins at 0 again. It is then another
    generation, whose positions stand beside those of the one before.

    Attributes:
        topic: its name.
        generation: 1 for the first topic of that name.
    """

    topic: str
    generation: int = 1

    @property
    def _head(self) -> str:
        return self.topic if self.generation == 1 else f"{self.topic}#{self.generation}"

    def source(self, partition: int) -> str:
        """The name of a partition's position: ``flights/3``."""
        return f"{self._head}/{partition}"

    @property
    def identity(self) -> str:
        """The name of the number that stands for the topic's own identity."""
        return f"{self._head}/id"

    def next(self) -> "Places":
        """Those of the topic that was made anew."""
        return Places(self.topic, self.generation + 1)

    @classmethod
    def of(cls, topic: str, kept: Mapping[str, int]) -> "Places":
        """Those of the newest generation that a table knows; the first if it knows none."""
        named = re.compile(re.escape(topic) + r"(?:#(\d+))?/(?:\d+|id)")
        found = [int(match[1] or 1) for source in kept if (match := named.fullmatch(source))]
        return cls(topic, max(found, default=1))

    def positions(self, kept: Mapping[str, int]) -> dict[int, int]:
        """The position of each partition, out of all that a table keeps."""
        named = re.compile(re.escape(self._head) + r"/(\d+)")
        return {int(m[1]): at for source, at in kept.items() if (m := named.fullmatch(source))}

    def kept(self, positions: Mapping[int, int], identity: str = "") -> dict[str, int]:
        """Positions as a table is to keep them."""
        found = {self.source(partition): at for partition, at in positions.items()}
        if identity:
            found[self.identity] = number(identity)
        return found


def number(identity: str) -> int:
    """An identity as a number of 56 bits, which is all that a table keeps of it."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:7])
