"""Every gRPC service of a server: the targets of their methods, and who answers each."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress

from drivetrain.serve.protocols import messages_tfs, messages_v2
from drivetrain.serve.protocols.calls import Route, Service
from drivetrain.serve.protocols.grpc_infer import GrpcInferRoute
from drivetrain.serve.protocols.grpc_manage import ManagementService
from drivetrain.serve.protocols.grpc_method import Answer, Served
from drivetrain.serve.protocols.grpc_stream_infer import StreamInferRoute
from drivetrain.serve.protocols.grpc_tfserving import TensorflowServing, TfsPredictRoute
from drivetrain.serve.protocols.grpc_v2 import OPEN, HealthService, InferenceService
from drivetrain.serve.protocols.messages import import_protobuf
from drivetrain.serve.transport.grpc_stream import GrpcStream

ROUTES: tuple[type[Route], ...] = (GrpcInferRoute, StreamInferRoute, TfsPredictRoute)
"""The ways to ask a version over gRPC."""
OPEN_METHODS = OPEN
"""Targets that need no token."""


class GrpcServices:
    """The services of one application.

    Args:
        served: what answers.
        service: what every call needs.

    Attributes:
        unary: by target, who answers a call of one message each way.
        streams: by target, who takes a call that streams.
    """

    def __init__(self, served: Served, service: Service) -> None:
        inference = InferenceService(served, service)
        management = ManagementService(served, service)
        serving = TensorflowServing(served, service)
        self._health = HealthService(served, service)
        self.unary: Mapping[str, Answer] = {
            **inference.unary,
            **management.unary,
            **serving.unary,
            **self._health.unary,
        }
        self.streams: Mapping[str, Callable[[GrpcStream], None]] = {
            **inference.streams,
            **self._health.streams,
        }

    async def prepare(self) -> None:
        """Compile the messages: the first call should not wait for it, nor those beside it."""
        with suppress(ImportError):
            await asyncio.to_thread(import_protobuf)
            messages_v2.messages()
            messages_tfs.messages()

    def readiness_changed(self) -> None:
        """Tell who watches it."""
        self._health.changed()
