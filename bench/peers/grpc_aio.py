"""grpc.aio and ONNX Runtime as a user would write it: each request is a run of its own."""

import os
from typing import Any

import grpc
import numpy as np
import uvloop
from graph import CATEGORIES, Graph

messages, services = grpc.protos_and_services("inference.proto")


class Service(services.GRPCInferenceServiceServicer):
    def __init__(self) -> None:
        self.graph = Graph()

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return messages.ServerReadyResponse(ready=True)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        columns = {
            tensor.name: np.frombuffer(raw, np.int64 if tensor.name in CATEGORIES else np.float32)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        click = self.graph.session.run(None, columns)[0]
        output = messages.ModelInferResponse.InferOutputTensor(
            name="click", datatype="FP32", shape=click.shape
        )
        return messages.ModelInferResponse(
            model_name=request.model_name,
            outputs=[output],
            raw_output_contents=[click.tobytes()],
        )


async def main() -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    services.add_GRPCInferenceServiceServicer_to_server(Service(), server)
    server.add_insecure_port(f"127.0.0.1:{os.environ['PEER_PORT']}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    for _ in range(int(os.environ["PEER_WORKERS"]) - 1):
        if os.fork() == 0:
            break
    uvloop.run(main())
