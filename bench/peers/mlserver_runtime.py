"""MLServer: a runtime of its own over two tensors; how many workers and rows to a batch is told."""

import asyncio
import os

import numpy as np
from graph import Graph
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class ModelA(MLModel):
    async def load(self) -> bool:
        self.graph = Graph()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        found = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        categories = np.ascontiguousarray(found["categories"].T)
        numbers = np.ascontiguousarray(found["numbers"].T)
        output = self.graph.columns(categories, numbers).reshape(-1, 1)
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("click", output)]
        )


async def main() -> None:
    port = int(os.environ["PEER_PORT"])
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=port,
        grpc_port=int(os.environ["PEER_PORT_2"]),
        metrics_endpoint=None,
        parallel_workers=int(os.environ["PEER_WORKERS"]),
    )
    server = MLServer(settings)
    model = ModelSettings(
        name="model_a",
        implementation="mlserver_runtime.ModelA",
        max_batch_size=int(os.environ["PEER_BATCH"]),
        max_batch_time=0.001,
    )
    await server.start([model])


if __name__ == "__main__":
    asyncio.run(main())
