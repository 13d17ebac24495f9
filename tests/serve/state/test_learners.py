"""Learners of an alias that moves, and moves back, while the log is written."""

import asyncio
import json
import threading

import films
import pytest
from learnt import offline

from drivetrain.serve.execution.live import Learning
from drivetrain.serve.state.embedded import Embedded
from drivetrain.serve.state.posts import Limits
from drivetrain.serve.telemetry.metrics import Metrics


class Kept:
    """The state of an alias, whose log a test may hold up."""

    def __init__(self, folder, monkeypatch):
        self.state = Embedded("films", folder, 1 << 30, Metrics())
        self.learners = self.state.memory.learners
        self.free, self.began = threading.Event(), threading.Event()
        self.free.set()
        append = self.state._journal.append

        def held(content):
            self.began.set()
            assert self.free.wait(60)
            append(content)

        monkeypatch.setattr(self.state._journal, "append", held)

    def prepare(self, bundle):
        learning = Learning(bundle.read("model.onnx"))
        return self.state.prepare(learning), learning

    def serve(self, digest, learning):
        self.state.keep((), Limits(8192), {digest: learning})
        assert self.state.live(digest, learning, self.given(learning)) is not None

    @staticmethod
    def given(learning):
        return learning.schema

    def observe(self, rows):
        told = []
        post = self.state.reader.read(json.dumps({"rows": rows}).encode())
        self.state.observe(post, told.append)
        return told

    async def until(self, condition):
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.001)

    async def settled(self):
        await self.until(lambda: self.state._task is None)


def learnt(kept, digest):
    return kept.learners.held[digest].awake.learner.dump()


@pytest.mark.parametrize("back", ["while it is written", "when it was written"])
def test_a_version_that_comes_back_at_once_misses_no_event(one, two, tmp_path, monkeypatch, back):
    rows = films.rows(40, seed=13)

    async def move():
        kept = Kept(tmp_path, monkeypatch)
        first, learning = kept.prepare(one)
        kept.serve(first, learning)
        kept.observe(rows[:10])
        await kept.settled()
        kept.free.clear()
        kept.began.clear()
        kept.serve(*kept.prepare(two))
        told = kept.observe(rows[10:20])
        await kept.until(kept.began.is_set)
        again = kept.prepare(one)
        if back == "while it is written":
            kept.serve(*again)
        kept.free.set()
        await kept.until(lambda: told)
        if back == "when it was written":
            kept.serve(*again)
        kept.observe(rows[20:30])
        await kept.settled()
        found = [learnt(kept, first)]
        await kept.state.close()
        kept = Kept(tmp_path, monkeypatch)
        kept.serve(*kept.prepare(one))
        await kept.settled()
        found.append(learnt(kept, first))
        kept.observe(rows[30:])
        await kept.settled()
        found.append(learnt(kept, first))
        await kept.state.close()
        return found

    assert asyncio.run(move()) == [offline(one, rows[:n]).dump() for n in (30, 30, 40)]
