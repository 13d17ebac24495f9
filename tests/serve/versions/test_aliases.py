"""Aliases that are asked, loaded and unloaded at the same time: what was decided last stands."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from drivetrain.serve.execution.loading import Loader
from drivetrain.serve.execution.models import Artefact, Traffic
from drivetrain.serve.telemetry.metrics import RETIRED, Metrics
from drivetrain.serve.versions.aliases import Aliases


class Installed:
    """What answers; stands in for the application."""

    def __init__(self):
        self.releases = {}

    def install(self, release):
        self.releases[release.name] = release

    def remove(self, name):
        del self.releases[name]


class Gate:
    """What an alias means; once it is shut, whoever asks waits for it to open."""

    def __init__(self, traffic):
        self.traffic = traffic
        self.asked, self.opened = threading.Event(), threading.Event()
        self.opened.set()

    def shut(self):
        self.asked.clear()
        self.opened.clear()

    def __call__(self):
        self.asked.set()
        assert self.opened.wait(5)
        return self.traffic


def aliases_of(resolve, metrics=None):
    engine = SimpleNamespace(open=lambda model: None, close=lambda model: None)
    return Aliases(resolve, Installed(), engine, metrics or Metrics(), Loader())


@pytest.fixture(scope="module")
def artefact(tiny):
    return Artefact(tiny.digest, tiny.path)


def test_what_is_unloaded_while_others_are_asked_stays_so(artefact):
    traffic = Traffic(stable=artefact)
    slow = Gate(traffic)
    aliases = aliases_of({"slow": slow, "other": lambda: traffic})

    async def main():
        aliases.begin()
        slow.shut()
        following = asyncio.create_task(aliases.follow(asyncio.Event(), 0.01))
        await asyncio.to_thread(slow.asked.wait, 5)
        unloading = asyncio.create_task(aliases.unload("other", "as asked"))
        await asyncio.sleep(0.02)
        slow.opened.set()
        await unloading
        await asyncio.sleep(0.1)  # every alias is asked again meanwhile
        following.cancel()

    asyncio.run(main())
    assert set(aliases.releases) == {"slow"}
    assert aliases.reasons == {"other": "as asked"}


def test_only_a_person_has_what_was_refused_tried_again(artefact, tmp_path):
    """Another worker's news is no reason: a canary that was stopped would get requests again."""
    told = Traffic(stable=artefact, canary=Artefact("0" * 64, tmp_path / "none"), share=0.5)
    metrics = Metrics()
    aliases = aliases_of({"tiny": lambda: told}, metrics)
    failures = metrics.reload_failures.of("tiny")

    async def main():
        aliases.begin()
        again = asyncio.Event()
        following = asyncio.create_task(aliases.follow(again, 60.0))
        for forgiven, expected in ((False, 1), (True, 2), (False, 2)):
            if forgiven:
                aliases.forgive()
            again.set()
            async with asyncio.timeout(15):
                while again.is_set() or failures.value < expected:
                    await asyncio.sleep(0.005)
            await asyncio.sleep(0.1)  # one too many would come meanwhile
            assert failures.value == expected
        following.cancel()

    asyncio.run(main())


def test_a_version_that_comes_back_counts_on_however_long_it_was_gone(
    artefact, write_bundle, tmp_path
):
    """As a roll-back to the oldest version that is told of: it must not be forgotten by that."""
    other = write_bundle(tmp_path / "other", 0.5)
    told = Traffic(stable=artefact)
    metrics = Metrics()
    aliases = aliases_of({"tiny": lambda: told}, metrics)
    version = artefact.digest[:12]
    counted = metrics.requests.of("tiny", version, "rows", "200")

    async def main():
        nonlocal told
        aliases.begin()
        counted.value += 1
        told = Traffic(stable=Artefact(other.digest, other.path))
        assert await aliases.load("tiny") == ""
        for number in range(RETIRED - 1):
            metrics.retire("tiny", f"v{number}")
        told = Traffic(stable=artefact)
        assert await aliases.load("tiny") == ""

    asyncio.run(main())
    assert metrics.requests.of("tiny", version, "rows", "200") is counted
    assert aliases.releases["tiny"].stable.version == version


def test_a_change_that_fails_ends_no_following(artefact, write_bundle, tmp_path, monkeypatch):
    other = write_bundle(tmp_path / "other", 0.5)
    told = Traffic(stable=artefact)
    aliases = aliases_of({"tiny": lambda: told})
    install, failures = aliases._install, [RuntimeError("can't start new thread")]

    def failing(release):
        if failures:
            raise failures.pop()
        install(release)

    async def main():
        nonlocal told
        aliases.begin()
        monkeypatch.setattr(aliases, "_install", failing)
        following = asyncio.create_task(aliases.follow(asyncio.Event(), 0.01))
        told = Traffic(stable=Artefact(other.digest, other.path))
        async with asyncio.timeout(15):
            while aliases.releases["tiny"].stable.digest != other.digest:
                await asyncio.sleep(0.01)
        following.cancel()

    asyncio.run(main())
    assert failures == []
