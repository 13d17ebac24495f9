"""The versions of every alias that is served, and how they change while requests go on."""

import asyncio
import contextlib
import logging
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TypeVar

from drivetrain.core.errors import wrong
from drivetrain.serve.application import Application
from drivetrain.serve.execution.engine import Engine
from drivetrain.serve.execution.filling import observed_by
from drivetrain.serve.execution.loading import Loader, give_back
from drivetrain.serve.execution.models import Artefact, Model, Release, Resolve, Traffic
from drivetrain.serve.state.states import States
from drivetrain.serve.telemetry.family import Counter
from drivetrain.serve.telemetry.metrics import Metrics
from drivetrain.serve.versions.guard import Guard
from drivetrain.serve.versions.shadow import places
from drivetrain.serve.workers.seat import Seat

log = logging.getLogger("drivetrain.serve")

Loaded = TypeVar("Loaded")

_LOOKS = 20
_LOOK_SECONDS = 0.025


class Aliases:
    """Loads what aliases mean, puts it in the place of what they meant, and asks again.

    Args:
        resolve: asked what each alias means.
        application: is told what answers now; used on the loop's thread only.
        engine: runs the loaded versions.
        metrics: says which versions answer, and what could not be loaded.
        loader: loads their graphs.
        seat: in one of several workers, to tell the others; None in a process by itself.
        load_seconds: a version whose loading takes longer is told of; the present one serves on.
        states: keeps what the windows of versions are read off; None serves none that has some.
    """

    def __init__(
        self,
        resolve: Mapping[str, Resolve],
        application: Application,
        engine: Engine,
        metrics: Metrics,
        loader: Loader,
        seat: Seat | None = None,
        load_seconds: float = math.inf,
        states: States | None = None,
    ) -> None:
        self._resolve = resolve
        self._application = application
        self._engine = engine
        self._metrics = metrics
        self._loader = loader
        self._seat = seat
        self._load_seconds = load_seconds
        self._states = states
        self._guard = Guard(metrics.requests)
        self._refused: set[tuple[str, str]] = set()
        self._forgiving = False
        self._lock = asyncio.Lock()
        self._unloaded: set[str] = set()
        self.reasons: dict[str, str] = {}
        """Why an alias is not loaded, or does not mean what it should."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every alias."""
        return tuple(self._resolve)

    @property
    def releases(self) -> Mapping[str, Release]:
        """Those that are loaded."""
        return self._application.releases

    def begin(self, unloaded: Mapping[str, str] | None = None) -> None:
        """Load every alias.

        Args:
            unloaded: those that are not to be loaded, and why.

        Raises:
            OSError: a bundle cannot be read.
            ValueError: a bundle is damaged, or is not what the alias names.
        """
        for name, ask in self._resolve.items():
            if unloaded is not None and name in unloaded:
                self._unloaded.add(name)
                self.reasons[name] = unloaded[name]
            else:
                if self._seat is not None:
                    self._seat.loads(name)
                self._install(self._first(name, ask))

    async def load(self, name: str) -> str:
        """Ask an alias and load what it means; gives why that failed, or nothing.

        What was refused is tried again. A version that serves stays if the one that the alias
        means now cannot.
        """
        async with self._lock:  # or a thread that asks might go through what is refused
            self._unloaded.discard(name)
            self._refused = {(n, digest) for n, digest in self._refused if n != name}
            self.reasons.pop(name, None)
        await self._look(name)
        return self.reasons.get(name, "")

    async def unload(self, name: str, reason: str) -> None:
        """Take no more requests for an alias; those that were accepted are answered."""
        async with self._lock:
            self._unloaded.add(name)
            self.reasons[name] = reason
            models = self._remove(name)
        if models:
            log.info("%s is unloaded", name)
            await _given_back(models)

    def _remove(self, name: str) -> list["weakref.ref[Model]"]:
        """Take an alias out of what answers; gives what will be gone behind the last answer."""
        release = self._application.releases.get(name)
        if release is None:
            return []
        self._application.remove(name)
        for model in release.models:
            self._engine.close(model)
        self._describe(release, None)
        return [weakref.ref(model) for model in release.models]

    async def _look(self, name: str) -> None:
        """Load what an alias means, if that is not loaded."""
        ask = self._resolve[name]
        async with self._lock:
            if name in self._unloaded:  # since it was decided to look, while others were asked
                return
            present = self._application.releases.get(name)
            try:
                if present is not None:
                    release = await self._watched(name, partial(self._newer, present, ask))
                else:
                    release = await self._watched(name, partial(self._fresh, name, ask))
            except Exception as error:
                self._fail(name, str(error))
                return
            if not any(n == name for n, _ in self._refused):
                self.reasons.pop(name, None)
            if release is not None:
                self._install(release)
                log.info("%s", release)
            self._judge(self._application.releases[name])

    async def _watched(self, name: str, load: Callable[[], Loaded]) -> Loaded:
        """Load on a thread, which nothing can end: what takes too long is told of, once."""
        loading = asyncio.ensure_future(asyncio.to_thread(load))
        limit = None if math.isinf(self._load_seconds) else self._load_seconds
        try:
            done, _ = await asyncio.wait({loading}, timeout=limit)
            if not done:
                self._fail(name, f"loading takes longer than {self._load_seconds:g} s")
            return await loading
        finally:
            loading.cancel()

    def _judge(self, release: Release) -> None:
        """Send no more requests to a canary that fails where the stable version does not.

        It is refused from now on, as a version that cannot be loaded is: until the alias names
        another canary or none, or an operator's SIGHUP.
        """
        why, canary = self._guard.failing(release, monotonic()), release.canary
        if why is None or canary is None:
            return
        self._refused.add((release.name, canary.digest))
        self.reasons[release.name] = f"the canary {canary.version} was stopped: {why}"
        self._metrics.canaries_stopped.of(release.name, canary.version).value += 1
        log.error("%s: %s", release.name, self.reasons[release.name])
        self._install(replace(release, canary=None, share=0.0))

    def _fail(self, name: str, reason: str) -> None:
        if self.reasons.get(name) != reason:  # or it would be told once a second
            self.reasons[name] = reason
            self._metrics.reload_failures.of(name).value += 1
            log.error("%s cannot be loaded: %s", name, reason)

    def forgive(self) -> None:
        """Try what was refused again, at the next look."""
        self._forgiving = True

    async def follow(self, again: asyncio.Event, seconds: float) -> None:
        """Ask what each alias means every so often, at once on ``again``, and load what is new."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(again.wait(), seconds)
            again.clear()
            if self._forgiving:
                async with self._lock:
                    self._forgiving, self._refused = False, set()
            for name in self.names:
                if name in self._unloaded:
                    continue
                try:
                    await self._look(name)
                except Exception as error:  # or nobody would be followed any more
                    log.exception("%s could not be changed", name)
                    self._fail(name, str(error))

    def _first(self, name: str, ask: Resolve) -> Release:
        """What an alias means; in a worker that is replaced, at worst what it meant before."""
        try:
            return self._fresh(name, ask)
        except Exception as error:
            if self._seat is None or name not in self._seat.known:
                raise
            digest, path = self._seat.known[name]
            log.error("%s begins as version %s: %s", name, digest[:12], error)
            return Release(self._load(name, Artefact(digest, Path(path))))

    def _load(self, name: str, artefact: Artefact) -> Model:
        """Load a version, and see that its windows can be kept."""
        model = Model.load(name, artefact, self._loader)
        if self._states is not None:
            self._states.check(model)
        elif model.filling is not None or model.learning is not None:
            raise wrong(f"{name}, windows or a learner", "some", "none where no state is kept")
        return model

    def _fresh(self, name: str, ask: Resolve) -> Release:
        """What an alias means of which nothing is loaded."""
        traffic = ask()
        refused = (name, traffic.stable.digest)
        if refused in self._refused:
            raise ValueError(self.reasons.get(name, "it was refused"))
        try:
            stable = self._load(name, traffic.stable)
        except Exception:
            self._refused.add(refused)
            raise
        return self._release(stable, traffic, {stable.digest: stable})

    def _newer(self, present: Release, ask: Resolve) -> Release | None:
        """The loaded versions that an alias means now, None if they are the present ones.

        A version that cannot be served is refused once, not once a second; SIGHUP tries again.
        """
        name = present.name
        try:
            traffic = ask()
        except Exception as error:
            self._refuse(present, "", error)
            return None
        wanted = {artefact.digest for artefact in traffic.artefacts}
        self._refused = {(n, d) for n, d in self._refused if n != name or d in wanted}
        loaded = {model.digest: model for model in present.models}
        stable = self._loaded(present, traffic.stable, loaded)
        if stable is None:  # its canary would be measured against another version than was meant
            return None
        release = self._release(stable, traffic, loaded | {stable.digest: stable})
        return None if release.traffic == present.traffic else release

    def _release(self, stable: Model, traffic: Traffic, loaded: Mapping[str, Model]) -> Release:
        """``traffic``, less the canary or shadow that cannot be served."""
        present = Release(stable)
        canary = traffic.canary and self._loaded(present, traffic.canary, loaded)
        shadow = traffic.shadow and self._loaded(present, traffic.shadow, loaded)
        release = Release(stable, canary, traffic.share if canary else 0.0, shadow)
        return self._heard(self._observed(release))

    def _observed(self, release: Release) -> Release:
        """``release``, less a canary and a shadow that observe a column as something else."""
        for role in ("canary", "shadow"):
            model = getattr(release, role)
            found = [m for m in (release.stable, release.canary, model) if m is not None]
            try:
                observed_by([fed for each in found for fed in each.fed])
            except ValueError as error:
                self._refuse(Release(release.stable), model.digest, error)
                share = 0.0 if role == "canary" else release.share
                release = replace(release, **{role: None}, share=share)
        return release

    def _heard(self, release: Release) -> Release:
        """``release``, less a shadow that cannot be asked what the others are asked."""
        if release.shadow is None:
            return release
        try:
            for _, model in release.roles:
                places(release.shadow.inputs, model.whole)
        except ValueError as error:
            self._refuse(Release(release.stable), release.shadow.digest, error)
            return replace(release, shadow=None)
        return release

    def _loaded(
        self, present: Release, artefact: Artefact, loaded: Mapping[str, Model]
    ) -> Model | None:
        """A version, None if it is refused."""
        if artefact.digest in loaded:
            return loaded[artefact.digest]
        if (present.name, artefact.digest) in self._refused:
            return None
        try:
            return self._load(present.name, artefact)
        except Exception as error:
            self._refuse(present, artefact.digest, error)
            return None

    def _refuse(self, present: Release, digest: str, error: Exception) -> None:
        if (present.name, digest) in self._refused:
            return
        self._refused.add((present.name, digest))
        self.reasons[present.name] = str(error)
        self._metrics.reload_failures.of(present.name).value += 1
        stays = present.stable.version
        log.error("%s stays version %s: %s", present.name, stays, error)

    def _install(self, release: Release) -> None:
        """Put versions in the place of those before; what these have begun they will end."""
        old = self._application.releases.get(release.name)
        before = () if old is None else old.models
        if self._states is not None:
            self._states.adopt(release)
        for model in release.models:
            if model not in before:
                self._metrics.serve(model.name, model.version)
                self._engine.open(model)
        self._application.install(release)
        for model in before:
            if model not in release.models:
                self._engine.close(model)
        self._describe(old, release)
        if self._seat is not None:
            stable = release.stable.artefact
            self._seat.tell(serves=(release.name, stable.digest, str(stable.path)))

    def _describe(self, old: Release | None, release: Release | None) -> None:
        """Say in the metrics which versions there are, and what each is."""
        info, shares = self._metrics.model_info, self._metrics.traffic_share
        for role, model in () if old is None else old.roles:
            info.remove(model.name, model.version, model.digest, role)
            shares.remove(model.name, model.version, role)
            self._metrics.placement_info.remove(model.name, model.version, model.placement)
        for model in () if old is None else old.models:
            if release is None or model not in release.models:
                self._metrics.retire(model.name, model.version)
        if release is None:
            return
        share = {"stable": 1.0 - release.share, "canary": release.share, "shadow": 0.0}
        for role, model in release.roles:
            present, answers = Counter(), Counter()
            present.value, answers.value = 1.0, share[role]
            info.set(present, model.name, model.version, model.digest, role)
            shares.set(answers, model.name, model.version, role)
            self._metrics.placement_info.set(present, model.name, model.version, model.placement)


async def _given_back(models: Sequence["weakref.ref[Model]"]) -> None:
    """Wait a while for the last runs of models, and return their memory to the system."""
    for _ in range(_LOOKS):
        if not any(model() for model in models):
            break
        await asyncio.sleep(_LOOK_SECONDS)
    await asyncio.to_thread(give_back)
