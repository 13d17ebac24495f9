"""What an alias means: its bundles, the way back, and the log of everything that was done to it."""

import getpass
import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from drivetrain.core.errors import wrong

_DIGEST = re.compile(r"[0-9a-f]{64}")

Deed = Literal["promoted", "rolled back", "canary", "canary ended", "shadow", "shadow ended"]


@dataclass(frozen=True, kw_only=True)
class Signature:
    """When something is done, and by whom.

    Attributes:
        at: ISO 8601, UTC, whole seconds.
        who: ``user@host``; empty in what an older version wrote.
    """

    at: str
    who: str = ""

    @classmethod
    def now(cls) -> "Signature":
        """This moment, and the user of this process."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user id without a name
            user = str(os.getuid())
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(at=at, who=f"{user}@{socket.gethostname()}")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One line of an alias' log.

    Attributes:
        at: ISO 8601, UTC.
        did: what was done.
        bundle: the digest that it was done to; of a roll-back the one that answers again.
        share: of the requests, where a canary was begun.
        who: ``user@host``; empty in what an older version wrote.
    """

    at: str
    did: Deed
    bundle: str
    share: float | None = None
    who: str = ""

    def __str__(self) -> str:
        share = "" if self.share is None else f" at {self.share:g} of the requests"
        return f"{self.at}  {self.did:13} {self.bundle[:12]}{share}" + (
            f"  by {self.who}" if self.who else ""
        )


@dataclass(frozen=True, kw_only=True)
class Step:
    """A bundle that answered before, and from when."""

    bundle: str
    at: str


@dataclass(frozen=True, kw_only=True)
class Alias:
    """What an alias means, with the transitions between two such states; all by digest.

    Attributes:
        bundle: the stable one, which answers.
        at: from when it did.
        canary: answers ``share`` of the requests in its stead; None if nobody does.
        share: above 0, at most 1; 0 without a canary.
        shadow: is asked what the others are asked, and nobody gets its answers.
        previous: what a roll-back goes back to, the last of them first to be taken.
        changes: all that was ever done, the oldest first; only ever appended to.
    """

    bundle: str
    at: str
    canary: str | None = None
    share: float = 0.0
    shadow: str | None = None
    previous: tuple[Step, ...] = ()
    changes: tuple[Change, ...] = ()

    def __str__(self) -> str:
        text = f"{self.bundle[:12]} answers since {self.at}"
        if self.canary is not None:
            text += f", {self.canary[:12]} is its canary at {self.share:g} of the requests"
        if self.shadow is not None:
            text += f", {self.shadow[:12]} is its shadow"
        return text

    # -- transitions ---------------------------------------------------------------------------

    @classmethod
    def born(cls, bundle: str, now: Signature) -> "Alias":
        """A new alias."""
        return cls(bundle=bundle, at=now.at)._noted("promoted", bundle, now)

    def promoted(self, bundle: str, now: Signature) -> "Alias":
        """``bundle`` answers.

        A canary ends, whichever bundle it is: it was held against the version that answered
        until now. A shadow that answers now is none any more.
        """
        if bundle == self.bundle:
            return self
        before = Step(bundle=self.bundle, at=self.at)
        moved = replace(self, bundle=bundle, at=now.at, previous=(*self.previous, before))
        return moved._noted("promoted", bundle, now)._settled(now)

    def rolled_back(self, now: Signature) -> "Alias":
        """The state before the last change of who answers.

        A running canary is that last change: it ends and the stable version stays. Without one
        the bundle before this one answers again.

        Raises:
            ValueError: there is no canary and nothing was before.
        """
        if self.canary is not None:
            return self.without_canary(now)
        if not self.previous:
            raise ValueError("has never meant another bundle than now.")
        *older, last = self.previous
        moved = replace(self, bundle=last.bundle, at=now.at, previous=tuple(older))
        return moved._noted("rolled back", last.bundle, now)._settled(now)

    def with_canary(self, bundle: str, share: float, now: Signature) -> "Alias":
        """``bundle`` answers a share of the requests.

        Raises:
            ValueError: it answers already, or the share is none.
        """
        if not 0.0 < share <= 1.0:
            raise wrong("share", share, "above 0 and at most 1 of the requests")
        if bundle == self.bundle:
            raise wrong("canary", bundle[:12], "another bundle than the one that answers")
        if (bundle, share) == (self.canary, self.share):
            return self
        asked = replace(self, canary=bundle, share=share)
        return asked._noted("canary", bundle, now, share)

    def without_canary(self, now: Signature) -> "Alias":
        """The stable version answers all requests."""
        if self.canary is None:
            return self
        ended = replace(self, canary=None, share=0.0)
        return ended._noted("canary ended", self.canary, now)

    def with_shadow(self, bundle: str, now: Signature) -> "Alias":
        """``bundle`` is asked what the others are asked.

        Raises:
            ValueError: it answers already.
        """
        if bundle == self.bundle:
            raise wrong("shadow", bundle[:12], "another bundle than the one that answers")
        if bundle == self.shadow:
            return self
        return replace(self, shadow=bundle)._noted("shadow", bundle, now)

    def without_shadow(self, now: Signature) -> "Alias":
        """Nobody is asked beside those who answer."""
        if self.shadow is None:
            return self
        return replace(self, shadow=None)._noted("shadow ended", self.shadow, now)

    def _settled(self, now: Signature) -> "Alias":
        """After another version began to answer."""
        settled = self.without_canary(now)
        return settled.without_shadow(now) if settled.shadow == settled.bundle else settled

    def _noted(self, did: Deed, bundle: str, now: Signature, share: float | None = None) -> "Alias":
        change = Change(at=now.at, did=did, bundle=bundle, share=share, who=now.who)
        return replace(self, changes=(*self.changes, change))

    # -- its file ------------------------------------------------------------------------------

    def to_json(self) -> bytes:
        """Its file: ``bundle``, ``at`` and ``previous`` stand as older versions read them."""
        entry: dict[str, Any] = {"bundle": self.bundle, "at": self.at}
        if self.canary is not None:
            entry["canary"] = {"bundle": self.canary, "share": self.share}
        if self.shadow is not None:
            entry["shadow"] = {"bundle": self.shadow}
        entry["previous"] = [asdict(step) for step in self.previous]
        entry["changes"] = [
            {key: value for key, value in asdict(change).items() if value not in (None, "")}
            for change in self.changes
        ]
        return (json.dumps(entry, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Alias":
        """What :meth:`to_json` wrote, or an older version, which kept no log.

        Raises:
            ValueError: it is damaged.
        """
        try:
            return cls._parsed(json.loads(text))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"found {error!r}") from None

    @classmethod
    def _parsed(cls, entry: Mapping[str, Any]) -> "Alias":
        previous = tuple(Step(bundle=s["bundle"], at=s["at"]) for s in entry["previous"])
        canary, shadow = entry.get("canary") or {}, entry.get("shadow") or {}
        alias = cls(
            bundle=entry["bundle"],
            at=entry["at"],
            canary=canary["bundle"] if canary else None,
            share=float(canary["share"]) if canary else 0.0,
            shadow=shadow["bundle"] if shadow else None,
            previous=previous,
        )
        if "changes" in entry:
            changes = tuple(Change(**change) for change in entry["changes"])
        else:
            steps = (*previous, Step(bundle=alias.bundle, at=alias.at))
            changes = tuple(Change(at=s.at, did="promoted", bundle=s.bundle) for s in steps)
        digests = [alias.bundle, alias.canary, alias.shadow]
        digests += [item.bundle for item in (*previous, *changes)]
        whole = (
            all(d is None or _DIGEST.fullmatch(d) for d in digests)
            and all(item.at for item in (alias, *previous, *changes))
            and all(change.did in get_args(Deed) for change in changes)
            and (alias.canary is None or 0.0 < alias.share <= 1.0)
        )
        if not whole:
            raise ValueError("it does not name a bundle")
        return replace(alias, changes=changes)
