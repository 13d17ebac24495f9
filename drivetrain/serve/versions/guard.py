"""Sees that a canary fails where the stable version does not."""

from collections import deque
from typing import NamedTuple

from drivetrain.serve.execution.models import Model, Release
from drivetrain.serve.telemetry.family import Counter, Family

_SECONDS = 30.0
"""Over which answers are counted, or longer until there are enough to judge by."""
_LEAST = 50
"""Answers of a canary before it is judged."""
_EXCESS = 0.05
"""Of its answers that may be server errors beyond the stable version's share."""


class _Count(NamedTuple):
    answered: float
    failed: float

    def since(self, before: "_Count") -> "_Count":
        return _Count(self.answered - before.answered, self.failed - before.failed)

    @property
    def share(self) -> float:
        return self.failed / self.answered if self.answered else 0.0


class Guard:
    """Holds the server errors of canaries against those of their stable versions.

    It judges by what one process has answered: where several serve, each stops a failing canary by
    itself, after its own share of the failures.

    Args:
        requests: the counter of requests by model, version, route and code.
    """

    def __init__(self, requests: Family[Counter]) -> None:
        self._requests = requests
        self._seen: dict[str, tuple[Release, deque[tuple[float, _Count, _Count]]]] = {}

    def failing(self, release: Release, now: float) -> str | None:
        """Why an alias' canary must get no more requests, None if it may; to be asked often.

        Args:
            release: what answers the alias now.
            now: seconds of a clock that only goes forward.
        """
        if release.canary is None:
            self._seen.pop(release.name, None)
            return None
        known, seen = self._seen.get(release.name, (None, deque()))
        if known is not release:
            seen = deque()
            self._seen[release.name] = (release, seen)
        found = (now, self._count(release.canary), self._count(release.stable))
        if len(seen) > 1 and seen[-1][1] == found[1]:  # or seconds without an answer would pile up
            seen.pop()
        seen.append(found)
        while (
            len(seen) > 2
            and now - seen[1][0] >= _SECONDS
            and found[1].since(seen[1][1]).answered >= _LEAST
        ):
            seen.popleft()
        (_, canary_then, stable_then), (_, canary_now, stable_now) = seen[0], seen[-1]
        canary, stable = canary_now.since(canary_then), stable_now.since(stable_then)
        if canary.answered < _LEAST or canary.share - stable.share <= _EXCESS:
            return None
        return (
            f"{canary.share:.1%} of its last {canary.answered:.0f} answers were server errors, "
            f"{stable.share:.1%} of the stable version's {stable.answered:.0f}"
        )

    def _count(self, model: Model) -> _Count:
        answered = failed = 0.0
        for (name, version, _, code), (count, *_) in self._requests.numbers().items():
            if (name, version) == (model.name, model.version):
                answered += count
                failed += count if code.startswith("5") else 0.0
        return _Count(answered, failed)
