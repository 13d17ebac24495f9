"""The Open Inference Protocol V2 over gRPC, as Triton's clients use it, and gRPC's health service.

Sources: https://github.com/open-inference/open-inference-protocol (grpc_predict_v2.proto),
Triton's grpc_service.proto, https://github.com/grpc/grpc/blob/master/doc/health-checking.md.
"""

from collections.abc import Callable, Mapping
from typing import Any

from drivetrain.core.need import need
from drivetrain.serve.execution.config import model_config
from drivetrain.serve.execution.models import Model
from drivetrain.serve.protocols.calls import Series, Service
from drivetrain.serve.protocols.grpc_infer import GrpcInferRoute, address, after_address
from drivetrain.serve.protocols.grpc_method import (
    Answer,
    Method,
    Served,
    found,
    parsed,
    refuse,
    unimplemented,
)
from drivetrain.serve.protocols.grpc_stream_infer import InferStream, StreamInferRoute
from drivetrain.serve.protocols.messages_v2 import messages
from drivetrain.serve.protocols.v2 import model_metadata, server_metadata
from drivetrain.serve.transport.exchange import Exchange, RefusedError
from drivetrain.serve.transport.grpc import GrpcStatus, of_http
from drivetrain.serve.transport.grpc_stream import GrpcStream

SERVICE = "/inference.GRPCInferenceService/"
HEALTH = "/grpc.health.v1.Health/"
OPEN = frozenset({f"{SERVICE}ServerLive", f"{SERVICE}ServerReady", f"{HEALTH}Check"})
"""Methods that need no token: a platform's health checks carry none, and they say nothing else."""
_SERVICES = ("", "inference.GRPCInferenceService", "tensorflow.serving.PredictionService")
_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = 1, 2, 3
_NO_SETTING = "found a setting of Triton's own, allowed: the options that the server starts with."
_MOST_ADDRESSES = 1024


class InferenceService:
    """The methods of ``inference.GRPCInferenceService`` that describe and infer.

    Args:
        served: what answers.
        service: what every call needs.
    """

    def __init__(self, served: Served, service: Service) -> None:
        self._served = served
        self._service = service
        self._other = Series(service, "", "", GrpcInferRoute.name)
        self._addresses: dict[bytes, tuple[str, str]] = {}
        series = Series(service, "", "", "grpc")
        served_only, managed = (_about(series, managed) for managed in (False, True))

        def method(name: str, request: str, answer: Callable[[Any], Any]) -> tuple[str, Answer]:
            return f"{SERVICE}{name}", Method(series, messages, request, answer)

        self.unary: Mapping[str, Answer] = {
            f"{SERVICE}ModelInfer": lambda exchange: self._infer(GrpcInferRoute.name, exchange),
            f"{SERVICE}ServerMetadata": lambda exchange: (
                managed if exchange.managed else served_only
            )(exchange),
            **dict(
                (
                    method("ServerLive", "Empty", lambda _: messages()["Live"](live=True)),
                    method("ServerReady", "Empty", self._server_ready),
                    method("ModelReady", "ModelName", self._model_ready),
                    method("ModelMetadata", "ModelName", self._model_metadata),
                    method("ModelConfig", "ModelName", self._model_config),
                    method("ModelStatistics", "ModelName", self._statistics),
                )
            ),
            **{
                f"{SERVICE}{name}": unimplemented(series, f"{name}: {_NO_SETTING}")
                for name in ("TraceSetting", "LogSettings")
            },
        }
        self.streams: Mapping[str, Callable[[GrpcStream], None]] = {
            f"{SERVICE}ModelStreamInfer": self._stream
        }

    # -- inference -----------------------------------------------------------------------------

    def _infer(self, kind: str, exchange: Exchange) -> None:
        try:
            name, version = self._address(exchange.body)
            answer = found(lambda: self._served.route(kind, name, version))
        except (ValueError, RefusedError) as error:
            refuse(self._other, exchange, error)
            return
        answer(exchange)

    def _address(self, body: bytes | bytearray) -> tuple[str, str]:
        """Name and version, most often the ones that were seen before."""
        text = bytes(body[: after_address(body)])
        known = self._addresses.get(text)
        if known is None:
            known = address(body)
            # Fields may come in any order: what stands behind others is not in this text.
            if text and len(text) <= _MOST_ADDRESSES and address(text) == known:
                if len(self._addresses) >= _MOST_ADDRESSES:
                    self._addresses.clear()
                self._addresses[text] = known
        return known

    def _stream(self, stream: GrpcStream) -> None:
        InferStream(stream, lambda exchange: self._infer(StreamInferRoute.name, exchange))

    # -- description ---------------------------------------------------------------------------

    def _server_ready(self, request: Any) -> Any:
        return messages()["Ready"](ready=self._served.able)

    def _model_ready(self, request: Any) -> Any:
        release = self._served.releases.get(request.name)
        versions = () if release is None else release.models
        ready = any(request.version in ("", model.version) for model in versions)
        return messages()["Ready"](ready=ready)

    def _model_metadata(self, request: Any) -> Any:
        model = self._model(request)
        versions = [m.version for m in self._served.releases[model.name].models]
        return _rendered("ModelMetadata", model_metadata(model, versions))

    def _model_config(self, request: Any) -> Any:
        config = model_config(self._model(request), self._service.engine.batching)
        return _rendered("ModelConfigResponse", {"config": config})

    def _statistics(self, request: Any) -> Any:
        told = found(lambda: self._served.statistics(request.name, request.version))
        return _rendered("ModelStatisticsResponse", told)

    def _model(self, request: Any) -> Model:
        """The version that a request names.

        Raises:
            RefusedError: 404, there is none.
        """
        found(lambda: self._served.route(GrpcInferRoute.name, request.name, request.version))
        release = self._served.releases[request.name]
        by_version = {model.version: model for model in release.models}
        return by_version.get(request.version, release.stable)


class HealthService:
    """The methods of ``grpc.health.v1.Health``: the server by the empty name or a service's."""

    def __init__(self, served: Served, service: Service) -> None:
        self._served = served
        self._watches: dict[GrpcStream, int] = {}
        """Who watches, and what they were told last."""
        series = Series(service, "", "", "health")
        self.unary: Mapping[str, Answer] = {
            f"{HEALTH}Check": Method(series, messages, "HealthRequest", self._check)
        }
        self.streams: Mapping[str, Callable[[GrpcStream], None]] = {f"{HEALTH}Watch": self._watch}

    def _check(self, request: Any) -> Any:
        if request.service not in _SERVICES:
            raise RefusedError(404, f"service: found {request.service!r}, allowed: {_SERVICES}.")
        return messages()["HealthResponse"](status=self._status)

    @property
    def _status(self) -> int:
        return _SERVING if self._served.able else _NOT_SERVING

    def _watch(self, stream: GrpcStream) -> None:
        def asked(message: bytes) -> None:
            stream.release()
            try:
                service = parsed(messages, "HealthRequest", message).service
            except (ValueError, RefusedError) as error:
                self._forget(stream)
                status = error.status if isinstance(error, RefusedError) else 400
                stream.finish(of_http(status), str(error))
                return
            if service in _SERVICES:
                self._tell(stream)
            else:
                _send(stream, _SERVICE_UNKNOWN)

        stream.on_message = asked
        stream.on_gone = lambda: self._forget(stream)

    def changed(self) -> None:
        """Tell who watches what is new. A server that ends ends the watches too, which would
        keep it from ending."""
        for stream in list(self._watches):
            self._tell(stream)
            if not self._served.ready:
                self._watches.pop(stream)
                stream.finish(GrpcStatus.UNAVAILABLE, "the server is ending.")

    def _forget(self, stream: GrpcStream) -> None:
        self._watches.pop(stream, None)

    def _tell(self, stream: GrpcStream) -> None:
        if self._watches.get(stream) != self._status:
            self._watches[stream] = self._status
            _send(stream, self._status)


def _send(stream: GrpcStream, status: int) -> None:
    stream.send(messages()["HealthResponse"](status=status).SerializeToString())


def _about(series: Series, managed: bool) -> Method:
    return Method(
        series, messages, "Empty", lambda _: _rendered("ServerMetadata", server_metadata(managed))
    )


def _rendered(name: str, data: Mapping[str, Any]) -> Any:
    """A message out of what is told over HTTP as JSON."""
    json_format = need("google.protobuf.json_format", "grpc")
    return json_format.ParseDict(data, messages()[name]())
