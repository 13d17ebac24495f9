"""Which of the aliases that a server was started with are loaded: listed, loaded, unloaded.

Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/
extension_model_repository.md. A client names one of the server's own aliases and gives neither
bytes nor a path.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from drivetrain.core.errors import unknown
from drivetrain.serve.execution.models import Release
from drivetrain.serve.transport.exchange import RefusedError
from drivetrain.serve.workers.ledger import Failures, Follower, Ledger, State

log = logging.getLogger("drivetrain.serve")

READY, UNAVAILABLE = "READY", "UNAVAILABLE"
_UNLOADED = "unloaded"
_LOAD_SECONDS = 60.0
_UNLOAD_SECONDS = 10.0


@dataclass(frozen=True)
class Entry:
    """A line of the repository's index.

    Attributes:
        name: the alias.
        version: one of those it means; empty if it is not loaded.
        state: ``READY`` or ``UNAVAILABLE``.
        reason: why it is unavailable, or why a newer version is not there.
    """

    name: str
    version: str
    state: str
    reason: str


class Loads(Protocol):
    """What loads and unloads in one process, as
    :class:`drivetrain.serve.versions.aliases.Aliases` does.

    Attributes:
        names: every alias that the server was started with.
        releases: those that are loaded.
        reasons: what went wrong last, by alias.
    """

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def releases(self) -> Mapping[str, Release]: ...
    @property
    def reasons(self) -> Mapping[str, str]: ...

    async def load(self, name: str) -> str:
        """Ask an alias and load what it means; gives why that failed, or nothing."""
        ...

    async def unload(self, name: str, reason: str) -> None:
        """Take no more requests for an alias, and give its memory back behind the last."""
        ...


def agreement(seats: int) -> Ledger:
    """What processes agree on: which aliases are not loaded, and how often each was asked for."""
    return Ledger(seats, {"unloaded": {}, "asks": {}})


class Repository:
    """The server's aliases, over all its processes.

    Args:
        loads: loads in this process.
        ledger: what all processes agree on.
        seat: this process' place in it.
    """

    def __init__(self, loads: Loads, ledger: Ledger, seat: int = 0) -> None:
        self._loads = loads
        self._follower = Follower(ledger, seat, self._apply)
        _, state = ledger.read()
        self.unloaded: Mapping[str, str] = state["unloaded"]
        """What a process that begins need not load, and why."""
        self._asked: Mapping[str, int] = state["asks"]
        self._failures: dict[str, str] = {}

    async def begin(self) -> None:
        """Follow what the processes agree on; what should be loaded has been."""
        await self._follower.begin()

    def end(self) -> None:
        """Follow no more."""
        self._follower.end()

    @property
    def names(self) -> tuple[str, ...]:
        """Every alias that the server was started with."""
        return self._loads.names

    @property
    def lacking(self) -> list[str]:
        """The aliases that should be loaded, and are not."""
        loads = self._loads
        return [n for n in loads.names if n not in loads.releases and n not in self.unloaded]

    def index(self, ready: bool = False, reasons: bool = False) -> list[Entry]:
        """Every version of every alias.

        Args:
            ready: leave out what is not loaded.
            reasons: tell them in full; they may name files of the server, which is for those
                who manage it.
        """
        found: list[Entry] = []
        for name in self._loads.names:
            release = self._loads.releases.get(name)
            reason = self._loads.reasons.get(name, "") if reasons else ""
            if release is not None:
                found += [Entry(name, model.version, READY, reason) for model in release.models]
            elif not ready:
                found.append(Entry(name, "", UNAVAILABLE, reason or _UNLOADED))
        return found

    def check(self, name: str) -> str:
        """``name``, which is one of the server's aliases.

        Raises:
            ValueError: it is not; names the nearest.
        """
        if name not in self._loads.names:
            raise unknown("model", name, self._loads.names)
        return name

    async def load(self, name: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Ask an alias again and load what it means, in every process.

        Args:
            name: one of the server's aliases.
            parameters: must be empty.

        Raises:
            ValueError: no such alias, or there are parameters: what is served is what the alias
                means, never what a client brings.
            RefusedError: 500, some process could not load it, which is told; an alias that was
                not loaded stays so. 503, some process did not do it in time.
        """
        self.check(name)
        if parameters:
            found = ", ".join(map(repr, sorted(parameters)))
            raise ValueError(
                f"parameters: found {found}, allowed: none; what is loaded is what the alias "
                "means, never a configuration or a file that a client brings."
            )
        before: str | None = None
        asks = 0

        def asked(state: State) -> State:
            nonlocal before, asks
            before, asks = state["unloaded"].get(name), state["asks"].get(name, 0) + 1
            unloaded = {key: value for key, value in state["unloaded"].items() if key != name}
            return {"unloaded": unloaded, "asks": {**state["asks"], name: asks}}

        failed = _of(name, await self._follower.change(asked, _LOAD_SECONDS))
        if not failed:
            return
        text = "; ".join(f"worker {seat}: {text}" for seat, text in failed.items())

        def withdrawn(state: State) -> State:
            if before is None or state["asks"].get(name) != asks:
                return state
            return {**state, "unloaded": {**state["unloaded"], name: text}}

        await self._follower.change(withdrawn, _UNLOAD_SECONDS)
        raise RefusedError(500, f"model {name!r} could not be loaded: {text}")

    async def unload(self, name: str) -> None:
        """Unload an alias in every process; what was accepted is answered.

        Raises:
            ValueError: no such alias.
            RefusedError: 503, some process did not do it in time.
        """
        self.check(name)

        def without(state: State) -> State:
            return {**state, "unloaded": {**state["unloaded"], name: _UNLOADED}}

        await self._follower.change(without, _UNLOAD_SECONDS)

    async def _apply(self, state: State) -> Failures:
        asked, self._asked = self._asked, state["asks"]
        self.unloaded = state["unloaded"]
        for name in self._loads.names:
            if name in self.unloaded:
                await self._loads.unload(name, self.unloaded[name])
                self._failures.pop(name, None)
            elif name not in self._loads.releases or self._asked.get(name) != asked.get(name):
                # Told until the next attempt: who asked for it may look after a further change.
                self._failures.pop(name, None)
                reason = await self._loads.load(name)
                if reason:
                    self._failures[name] = reason
        return self._failures


def _of(name: str, failures: Mapping[int, Failures]) -> dict[int, str]:
    return {seat: found[name] for seat, found in failures.items() if name in found}
