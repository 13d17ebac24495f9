"""BentoML: two workers, adaptive batching of an endpoint whose items are rows."""

import os
from typing import Any

import bentoml
from graph import Graph


@bentoml.service(workers=len(os.sched_getaffinity(0)), traffic={"timeout": 30})
class ModelA:
    def __init__(self) -> None:
        self.graph = Graph()

    @bentoml.api(batchable=True, max_batch_size=64)
    def predict(self, rows: list[dict[str, Any]]) -> list[dict[str, float]]:
        return [{"click": value} for value in self.graph.rows(rows)]
