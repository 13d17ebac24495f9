"""The floors of a server in Python: httptools on uvloop, each request answered with one constant.

Where ``PEER_ROWS`` are given, model A is first run over so many ready rows: what a server on this
loop takes that neither looks at what came nor writes what the graph said.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any

import httptools
import uvloop

BODY = b"x" * int(os.environ.get("PEER_BYTES", "100"))
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)


def run_of(rows: int) -> Callable[[], object]:
    """A run over ready arrays; of no rows, nothing."""
    if not rows:
        return lambda: None
    import numpy as np
    from graph import CATEGORIES, NUMBERS, Graph

    random = np.random.default_rng(0)
    feeds: dict[str, Any] = {name: random.integers(0, 10_000, rows) for name in CATEGORIES}
    feeds |= {name: random.normal(0, 1, rows).astype(np.float32) for name in NUMBERS}
    session = Graph().session
    return lambda: session.run(None, feeds)


class Echo(asyncio.Protocol):
    def __init__(self, run: Callable[[], object]) -> None:
        self.run = run

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.run()
        self.transport.write(ANSWER)


async def main() -> None:
    port, run = int(os.environ["PEER_PORT"]), run_of(int(os.environ.get("PEER_ROWS", "0")))
    server = await asyncio.get_running_loop().create_server(lambda: Echo(run), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
