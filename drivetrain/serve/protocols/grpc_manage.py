"""The methods of ``inference.GRPCInferenceService`` that manage: repository and shared memory.

They do over gRPC what :mod:`drivetrain.serve.protocols.management` does over HTTP, and where.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from drivetrain.core.errors import unknown
from drivetrain.serve.protocols.calls import Series, Service
from drivetrain.serve.protocols.grpc_infer import values_of
from drivetrain.serve.protocols.grpc_method import PROTOBUF, Answer, Served, found, parsed, refuse
from drivetrain.serve.protocols.management import Management
from drivetrain.serve.protocols.messages_v2 import messages
from drivetrain.serve.transport.exchange import NOT_MANAGED, RETRY, Exchange, RefusedError

log = logging.getLogger("drivetrain.serve")

_SERVICE = "/inference.GRPCInferenceService/"
_NO_CUDA = "CUDA shared memory: found a region, allowed: system memory."
_NO_MANAGEMENT = "found a server whose models nobody loads or unloads."
Work = Callable[[Management, Any], Awaitable[Any]]


class ManagementService:
    """Repository and shared memory.

    Args:
        served: what is managed.
        service: what every call needs.
    """

    def __init__(self, served: Served, service: Service) -> None:
        self._served = served
        self._series = Series(service, "", "", "management")
        self._tasks: set[asyncio.Task[None]] = set()
        guarded: Mapping[str, tuple[str, Work]] = {
            "RepositoryModelLoad": ("RepositoryModelRequest", _load),
            "RepositoryModelUnload": ("RepositoryModelRequest", _unload),
            "SystemSharedMemoryStatus": ("RegionName", _status),
            "SystemSharedMemoryRegister": ("RegionRequest", _register),
            "SystemSharedMemoryUnregister": ("RegionName", _unregister),
            "CudaSharedMemoryStatus": ("RegionName", _no_regions),
            "CudaSharedMemoryRegister": ("RegionName", _no_register),
            "CudaSharedMemoryUnregister": ("RegionName", _nothing),
        }
        self.unary: Mapping[str, Answer] = {
            f"{_SERVICE}RepositoryIndex": self._answering("RepositoryIndexRequest", _index),
            **{
                f"{_SERVICE}{name}": self._managing(self._answering(request, work))
                for name, (request, work) in guarded.items()
            },
        }

    def _managing(self, answer: Answer) -> Answer:
        """Answers where managing is allowed, and says elsewhere where that is."""

        def guarded(exchange: Exchange) -> None:
            if exchange.managed:
                answer(exchange)
                return
            target = exchange.target.decode("latin-1")
            self._series.refuse(exchange, 403, f"target {target!r}: {NOT_MANAGED}")

        return guarded

    def _answering(self, request: str, work: Work) -> Answer:
        def answer(exchange: Exchange) -> None:
            # Held on to here: the loop itself keeps no more than a weak reference to a task.
            task = asyncio.get_running_loop().create_task(self._do(exchange, request, work))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return answer

    async def _do(self, exchange: Exchange, request: str, work: Work) -> None:
        try:
            management = self._served.management
            if management is None:
                raise RefusedError(501, f"method: {_NO_MANAGEMENT}")
            asked = parsed(messages, request, bytes(exchange.body))
            body = (await work(management, asked)).SerializeToString()
        except (ValueError, RefusedError) as error:
            busy = isinstance(error, RefusedError) and error.status == 503
            refuse(self._series, exchange, error, RETRY if busy else b"")
        except Exception:
            log.exception("a call to manage the server failed")
            self._series.refuse(exchange, 500, "the server failed on this; its log says why.")
        else:
            self._series.answer(exchange, 200, body, PROTOBUF)


def _empty() -> Any:
    return messages()["Empty"]()


async def _index(management: Management, request: Any) -> Any:
    answer = messages()["RepositoryIndexResponse"]()
    for entry in management.repository.index(request.ready):
        answer.models.add(**asdict(entry))
    return answer


async def _load(management: Management, request: Any) -> Any:
    found(lambda: management.repository.check(request.model_name))
    await management.repository.load(request.model_name, values_of(request.parameters))
    return _empty()


async def _unload(management: Management, request: Any) -> Any:
    found(lambda: management.repository.check(request.model_name))
    for name in request.parameters:
        if name != "unload_dependents":
            raise unknown("parameter", name, ["unload_dependents"])
    await management.repository.unload(request.model_name)
    return _empty()


async def _status(management: Management, request: Any) -> Any:
    answer = messages()["RegionsResponse"]()
    for region in management.memory.status(request.name):
        answer.regions[region.name].CopyFrom(messages()["RegionRequest"](**asdict(region)))
    return answer


async def _register(management: Management, request: Any) -> Any:
    await management.memory.register(request.name, request.key, request.offset, request.byte_size)
    return _empty()


async def _unregister(management: Management, request: Any) -> Any:
    await management.memory.unregister(request.name)
    return _empty()


async def _no_regions(management: Management, request: Any) -> Any:
    if request.name:
        raise unknown("region", request.name, ())
    return messages()["RegionsResponse"]()


async def _no_register(management: Management, request: Any) -> Any:
    raise RefusedError(501, _NO_CUDA)


async def _nothing(management: Management, request: Any) -> Any:
    """What is not there need not be taken away; clients clean up by this before they begin."""
    return _empty()
