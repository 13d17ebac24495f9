"""The routes that manage a server over HTTP: its repository and its shared memory, as V2 has them.

Sources: https://github.com/triton-inference-server/server/tree/main/docs/protocol, the extensions
for the model repository, system shared memory and CUDA shared memory (of which there is none here,
which clients that ask are told in the extension's own form).
"""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import msgspec

from drivetrain.core.errors import unknown
from drivetrain.serve.protocols.calls import Series, Service
from drivetrain.serve.transport.exchange import NOT_MANAGED, RETRY, Exchange, RefusedError
from drivetrain.serve.workers.repository import Repository
from drivetrain.serve.workers.shared_memory import SharedMemory

log = logging.getLogger("drivetrain.serve")

Answer = Callable[[Exchange], object]
Methods = Mapping[bytes, Answer]
Work = Callable[[Exchange], Coroutine[Any, Any, object]]

INDEX = "/v2/repository/index"
_LOAD = re.compile(r"/v2/repository/models/([^/]+)/(load|unload)")
_MEMORY = re.compile(
    r"/v2/(system|cuda)sharedmemory(?:/region/([^/]+))?/(status|register|unregister)"
)


class _Loading(msgspec.Struct):
    parameters: dict[str, Any] | None = None


class _Listing(msgspec.Struct):
    ready: bool = False


class _Registering(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


Body = TypeVar("Body", bound=msgspec.Struct)


class Management:
    """Finds and answers the requests that manage.

    Args:
        repository: what is loaded.
        memory: what is registered.
        service: counts them.
    """

    def __init__(self, repository: Repository, memory: SharedMemory, service: Service) -> None:
        self.repository = repository
        self.memory = memory
        self._series = Series(service, "", "", "management")
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, path: str) -> Methods | None:
        """What answers at a target; None if it is none of these."""
        if path == INDEX:
            return {b"POST": self._answering(self._index)}
        found = _LOAD.fullmatch(path)
        if found is not None:
            name, verb = found.groups()
            if name not in self.repository.names:
                return {b"POST": lambda exchange: self._unknown(exchange, name)}
            work = self._load(name) if verb == "load" else self._unload(name)
            return {b"POST": self._managing(work)}
        found = _MEMORY.fullmatch(path)
        if found is None:
            return None
        kind, region, verb = found.groups()
        if verb == "register" and region is None:
            return None
        method = b"GET" if verb == "status" else b"POST"
        return {method: self._managing(self._of_memory(kind, region or "", verb))}

    def _of_memory(self, kind: str, region: str, verb: str) -> Work:
        if kind == "cuda":
            return _no_cuda(region, verb)
        if verb == "status":
            return self._status(region)
        return self._register(region) if verb == "register" else self._unregister(region)

    # -- what is done --------------------------------------------------------------------------

    async def _index(self, exchange: Exchange) -> object:
        asked = _body(exchange, _Listing)
        entries = self.repository.index(asked.ready, reasons=exchange.managed)
        return [asdict(entry) for entry in entries]

    def _load(self, name: str) -> Work:
        async def load(exchange: Exchange) -> object:
            await self.repository.load(name, _body(exchange, _Loading).parameters)
            return {}

        return load

    def _unload(self, name: str) -> Work:
        async def unload(exchange: Exchange) -> object:
            asked = _body(exchange, _Loading).parameters or {}
            wrong = asked.keys() - {"unload_dependents"}
            if wrong:
                raise unknown("parameter", min(wrong), ["unload_dependents"])
            await self.repository.unload(name)
            return {}

        return unload

    def _status(self, name: str) -> Work:
        async def status(exchange: Exchange) -> object:
            return [asdict(region) for region in self.memory.status(name)]

        return status

    def _register(self, name: str) -> Work:
        async def register(exchange: Exchange) -> object:
            asked = _body(exchange, _Registering)
            await self.memory.register(name, asked.key, asked.offset, asked.byte_size)
            return {}

        return register

    def _unregister(self, name: str) -> Work:
        async def unregister(exchange: Exchange) -> object:
            await self.memory.unregister(name)
            return {}

        return unregister

    # -- how it is answered --------------------------------------------------------------------

    def _unknown(self, exchange: Exchange, name: str) -> None:
        try:
            self.repository.check(name)
        except ValueError as error:
            self._series.refuse(exchange, 404, str(error))

    def _managing(self, work: Work) -> Answer:
        """Answers where managing is allowed, and says elsewhere where that is."""
        answer = self._answering(work)

        def guarded(exchange: Exchange) -> None:
            if exchange.managed:
                answer(exchange)
                return
            target = exchange.target.decode("latin-1")
            self._series.refuse(exchange, 403, f"target {target!r}: {NOT_MANAGED}")

        return guarded

    def _answering(self, work: Work) -> Answer:
        def answer(exchange: Exchange) -> None:
            # Held on to here: the loop itself keeps no more than a weak reference to a task.
            task = asyncio.get_running_loop().create_task(self._do(exchange, work))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return answer

    async def _do(self, exchange: Exchange, work: Work) -> None:
        try:
            body = json.dumps(await work(exchange)).encode()
        except ValueError as error:
            self._series.refuse(exchange, 400, str(error))
        except RefusedError as error:
            extra = RETRY if error.status == 503 else b""
            self._series.refuse(exchange, error.status, str(error), extra)
        except Exception:
            log.exception("a request to manage the server failed")
            self._series.refuse(exchange, 500, "the server failed on this; its log says why.")
        else:
            self._series.answer(exchange, 200, body)


def _no_cuda(region: str, verb: str) -> Work:
    async def answer(exchange: Exchange) -> object:
        if verb == "register":
            raise RefusedError(501, "CUDA shared memory: found a region, allowed: system memory.")
        if verb == "status" and region:
            raise unknown("region", region, ())
        return [] if verb == "status" else {}

    return answer


def _body(exchange: Exchange, kind: type[Body]) -> Body:
    """What a request says; one without a body says nothing.

    Raises:
        ValueError: it is no JSON, or says something else.
    """
    try:
        return msgspec.json.decode(exchange.body or b"{}", type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"body: {error}.") from None
