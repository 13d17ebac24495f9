"""The declaration of online learning: what a served model goes on to learn between trainings."""

import json
from dataclasses import asdict, dataclass

from drivetrain.core.errors import wrong
from drivetrain.core.schema import Dtype


@dataclass(frozen=True, kw_only=True)
class Online:
    """That a served factorization goes on to learn from the events that the server observes.

    Attributes:
        capacity: items that may come new until the next training; further ones are refused.
        recent: partners that are remembered of each user and each item; of what lies further back
            only its sum is kept.
        guard: by how much the online model's progressive AUC may lie below the frozen one's. Where
            it is worse than that, the trained vectors are answered with again.
        evidence: events over which both are compared.
        seed: of the items that an event's item is compared with.
    """

    capacity: int = 1000
    recent: int = 64
    guard: float = 0.02
    evidence: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("capacity", 0), ("recent", 1), ("evidence", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise wrong(f"Online.{name}", value, f"a whole number, {least} or more")
        if not self.guard > 0:
            raise wrong("Online.guard", self.guard, "a number above 0")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a served graph says of its learner.

    Attributes:
        user: the raw column of users.
        item: the raw column of items.
        user_type: ``string`` or ``int64``.
        item_type: the same.
        alpha: of the objective, see ``ALS``.
        l2: of the objective.
        online: how it learns.
    """

    user: str
    item: str
    user_type: Dtype
    item_type: Dtype
    alpha: float
    l2: float
    online: Online

    def to_json(self) -> str:
        """The text in the graph."""
        return json.dumps({"version": 1, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: a newer version wrote it.
        """
        told = json.loads(text)
        if told.pop("version") != 1:
            raise wrong("the learner of a graph", text, "version 1")
        online = Online(**told.pop("online"))
        return cls(**told, online=online)
