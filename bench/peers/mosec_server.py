"""mosec: two workers, dynamic batches of up to 64 that wait as long as they are told."""

import os
from typing import Any

from graph import Graph
from mosec import Server, Worker


class ModelA(Worker):
    def __init__(self) -> None:
        self.graph = Graph()

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, float]]:
        return [{"click": value} for value in self.graph.rows(data)]


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        ModelA,
        num=len(os.sched_getaffinity(0)),
        max_batch_size=64,
        max_wait_time=int(os.environ["PEER_WAIT_MS"]),
    )
    server.run()
