"""What processes agree on: whole after any death, waited for by whoever changed it."""

import asyncio
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress

import pytest

from drivetrain.serve.transport.exchange import RefusedError
from drivetrain.serve.workers import ledger as module
from drivetrain.serve.workers.ledger import Follower, Ledger

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")


@contextmanager
def forked(work):
    """A process that does ``work`` and ends; it is killed at the end in any case."""
    pid = os.fork()
    if not pid:
        with suppress(BaseException):
            work()
        os._exit(0)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


@pytest.fixture
def ledger():
    found = Ledger(2, {"count": 0})
    yield found
    found.close()


def more(state):
    return {"count": state["count"] + 1}


def test_it_begins_with_the_state_that_it_was_given(ledger):
    assert ledger.read() == (0, {"count": 0})


def test_changes_of_several_processes_are_all_there_and_each_has_its_version(ledger):
    def work():
        for _ in range(200):
            ledger.change(more)

    with forked(work) as one, forked(work) as two:
        for _ in range(200):
            ledger.change(more)
        for pid in (one, two):
            os.waitpid(pid, 0)
    assert ledger.read() == (600, {"count": 600})


def test_who_is_killed_while_it_changes_leaves_the_state_before_and_no_lock(ledger):
    reads, writes = os.pipe()

    def hang(state):
        os.write(writes, b"x")
        time.sleep(30)
        return state

    with forked(lambda: ledger.change(hang)) as pid:
        assert os.read(reads, 1) == b"x"
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for end in (reads, writes):
        os.close(end)
    started = time.monotonic()
    assert ledger.change(more) == 1
    assert time.monotonic() - started < module._LOCK_SECONDS
    assert ledger.read() == (1, {"count": 1})


def test_a_process_that_is_stopped_while_it_changes_holds_up_nobody_for_ever(ledger, monkeypatch):
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.05)
    reads, writes = os.pipe()

    def hang(state):
        os.write(writes, b"x")
        time.sleep(30)
        return state

    with forked(lambda: ledger.change(hang)):
        assert os.read(reads, 1) == b"x"
        with pytest.raises(RefusedError, match="lock") as refused:
            ledger.change(more)
        assert refused.value.status == 503
    for end in (reads, writes):
        os.close(end)


def test_a_change_that_is_refused_changes_nothing(ledger):
    def refuse(state):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        ledger.change(refuse)
    assert ledger.read() == (0, {"count": 0})
    assert ledger.change(more) == 1


def test_only_who_has_a_part_in_it_is_waited_for(ledger):
    version = ledger.change(more)
    assert ledger.behind(version) == []
    ledger.join(1)
    assert ledger.behind(version) == [1]
    ledger.applied(1, version, {"a": "b"})
    assert (ledger.behind(version), ledger.failures()) == ([], {1: {"a": "b"}})
    assert ledger.behind(version + 1) == [1]
    ledger.leave(1)
    assert (ledger.behind(version + 1), ledger.failures()) == ([], {})


def followed(ledger, seat, seen, delay=0.0):
    async def apply(state):
        await asyncio.sleep(delay)
        seen.append(state["count"])
        return {"odd": "it is"} if state["count"] % 2 else {}

    return Follower(ledger, seat, apply)


def test_a_change_is_applied_by_all_before_it_returns_and_tells_what_failed(ledger):
    async def main():
        seen = ([], [])
        followers = [followed(ledger, n, seen[n], delay=0.01 * n) for n in range(2)]
        for follower in followers:
            await follower.begin()
        assert await followers[0].change(more, 5) == {0: {"odd": "it is"}, 1: {"odd": "it is"}}
        assert seen == ([0, 1], [0, 1])
        assert await followers[1].change(more, 5) == {0: {}, 1: {}}
        assert seen == ([0, 1, 2], [0, 1, 2])
        for follower in followers:
            follower.end()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_whoever_does_not_apply_a_change_in_time_is_named_and_the_change_stands(ledger):
    async def main():
        seen = []
        follower = followed(ledger, 0, seen)
        await follower.begin()
        ledger.join(1)
        with pytest.raises(
            RefusedError, match=r"worker 1 has not applied it within 0\.05 s"
        ) as found:
            await follower.change(more, 0.05)
        assert found.value.status == 503
        assert ledger.read() == (1, {"count": 1})
        follower.end()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_process_that_dies_while_it_is_waited_for_is_waited_for_no_more(ledger):
    async def main():
        follower = followed(ledger, 0, [])
        await follower.begin()
        ledger.join(1)
        change = asyncio.create_task(follower.change(more, 5))
        await asyncio.sleep(0.02)
        assert not change.done()
        ledger.leave(1)  # as the supervisor does
        assert set(await change) == {0}
        follower.end()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_who_begins_has_applied_what_was_changed_while_it_began(ledger):
    async def main():
        seen = []

        async def apply(state):
            seen.append(state["count"])
            if len(seen) < 4:
                ledger.change(more)
            return {}

        late = Follower(ledger, 1, apply)
        await late.begin()
        assert seen == [0, 1, 2, 3]
        assert ledger.behind(3) == []
        late.end()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_nothing_is_left_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    found = Ledger(4, {})
    found.change(lambda state: {"a": 1})
    found.close()
    assert len(os.listdir("/proc/self/fd")) == before
