"""Ray Serve: two replicas on two cores, batches of up to 64 that wait a millisecond at most."""

import os
import signal
import threading
from typing import Any

import ray
from graph import Graph
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=len(os.sched_getaffinity(0)), max_ongoing_requests=256)
class ModelA:
    def __init__(self) -> None:
        self.graph = Graph()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def predict(self, rows: list[dict[str, Any]]) -> list[dict[str, float]]:
        return [{"click": value} for value in self.graph.rows(rows)]

    async def __call__(self, request: Request) -> dict[str, float]:
        return await self.predict(await request.json())


if __name__ == "__main__":
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=100 << 20,
        log_to_driver=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PEER_PORT"])})
    serve.run(ModelA.bind())
    ended.wait()
    serve.shutdown()
    ray.shutdown()
