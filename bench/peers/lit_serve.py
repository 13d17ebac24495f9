"""LitServe: two workers, two API servers, batches of what waits."""

import os
from typing import Any

import litserve
from graph import Graph


class ModelA(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.graph = Graph()

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return inputs

    def predict(self, x: list[dict[str, Any]]) -> list[float]:
        return self.graph.rows(x)

    def unbatch(self, output: list[float]) -> list[float]:
        return output

    def encode_response(self, output: float) -> dict[str, float]:
        return {"click": output}


if __name__ == "__main__":
    cores = len(os.sched_getaffinity(0))
    api = ModelA(max_batch_size=64, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=cores, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PEER_PORT"]),
        num_api_servers=cores,
        log_level="error",
        generate_client_file=False,
    )
