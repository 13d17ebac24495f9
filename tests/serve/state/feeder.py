"""Posts observations to a process that is killed again and again, as a feeder does: it goes on from
where the process says that it stands."""

import contextlib
import json
import os
import subprocess
import sys

KEEPER = """
import asyncio, json, sys, threading
from pathlib import Path
from drivetrain.serve.execution.filling import Kept
from drivetrain.serve.state import embedded
from drivetrain.serve.state.posts import Limits
from drivetrain.serve.telemetry.metrics import Metrics

embedded._LOG_BYTES = int(sys.argv[3])

async def main():
    state = embedded.Embedded("cards", Path(sys.argv[1]), 1 << 30, Metrics())
    state.keep([Kept.from_json(each) for each in json.loads(sys.argv[2])], Limits(8192))
    print(json.dumps(state.memory.positions), flush=True)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def take(line):
        post = state.reader.read(line)
        told = lambda outcome: print(post.source, post.offset, outcome.ignored, flush=True)
        state.observe(post, told)

    def read():
        for line in sys.stdin.buffer:
            loop.call_soon_threadsafe(take, line)

    threading.Thread(target=read, daemon=True).start()
    await ended.wait()

asyncio.run(main())
"""


class Keeper:
    """A process that keeps observations in a directory."""

    def __init__(self, room, kept, log_bytes=20_000):
        plain = json.dumps([each.to_json() for each in kept])
        self.child = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", KEEPER, room, plain, str(log_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.positions = json.loads(self.child.stdout.readline())

    def post(self, source, offset, rows):
        body = {"source": source, "offset": offset, "rows": rows}
        self.child.stdin.write(json.dumps(body) + "\n")
        self.child.stdin.flush()

    def told(self):
        """The source and the offset of the next post that is safe."""
        source, offset, _ = self.child.stdout.readline().split()
        return source, int(offset)

    def kill(self):
        self.child.kill()
        self.child.wait()
        self.child.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.close()


class Feed:
    """Rows of several sources, a few to a post, with some posts under way."""

    def __init__(self, rows, sources=3, each=4):
        self.each = each
        self.rows = {f"topic/{n}": rows[n::sources] for n in range(sources)}
        self.safe = dict.fromkeys(self.rows, 0)

    def begin(self, keeper):
        """Go on from where a process stands; nothing that was safe may be missing."""
        for source, offset in self.safe.items():
            assert keeper.positions.get(source, 0) >= offset, "an acknowledged post is gone"
        self.sent = {source: keeper.positions.get(source, 0) for source in self.rows}
        self.safe = dict(self.sent)
        self.under_way = 0

    @property
    def left(self):
        return sum(len(rows) - self.safe[source] for source, rows in self.rows.items())

    def go_on(self, keeper, posts):
        """Post until so many more are safe, or nothing is left."""
        while posts and (self._send(keeper) or self.under_way):
            source, offset = keeper.told()
            self.under_way -= 1
            assert offset > self.safe[source]
            self.safe[source] = offset
            posts -= 1

    def _send(self, keeper):
        for source, rows in self.rows.items():
            while self.under_way < 12 and self.sent[source] < len(rows):
                offset = min(self.sent[source] + self.each, len(rows))
                keeper.post(source, offset, rows[self.sent[source] : offset])
                self.sent[source] = offset
                self.under_way += 1
        return self.under_way
