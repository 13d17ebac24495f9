"""Which request goes where: the table of targets, health, metadata, docs, metrics."""

import asyncio
import gc
import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from drivetrain.core.errors import unknown
from drivetrain.serve.entrance import Entrance
from drivetrain.serve.execution.config import model_config
from drivetrain.serve.execution.models import Model, Release
from drivetrain.serve.execution.statistics import model_statistics
from drivetrain.serve.protocols.calls import Route, Series, Service
from drivetrain.serve.protocols.grpc_services import OPEN_METHODS, GrpcServices
from drivetrain.serve.protocols.grpc_services import ROUTES as GRPC_ROUTES
from drivetrain.serve.protocols.management import Answer, Management, Methods
from drivetrain.serve.protocols.openapi import PAGE_HEADERS, document, page
from drivetrain.serve.protocols.rows import RowsRoute
from drivetrain.serve.protocols.tfserving import PredictRoute, status
from drivetrain.serve.protocols.v2 import (
    InferRoute,
    model_metadata,
    own_version,
    server_metadata,
)
from drivetrain.serve.state.observing import Observing
from drivetrain.serve.telemetry.metrics import CONTENT_TYPE
from drivetrain.serve.transport.coding import inflate
from drivetrain.serve.transport.exchange import Exchange, RefusedError
from drivetrain.serve.transport.grpc_stream import GrpcStream
from drivetrain.serve.versions.shadow import Shadow
from drivetrain.serve.versions.split import Split
from drivetrain.serve.workers.repository import Repository
from drivetrain.serve.workers.shared_memory import SharedMemory

HTML = b"text/html; charset=utf-8"
_LIVE, _READY = "/v2/health/live", "/v2/health/ready"
_OPEN = frozenset(target.encode() for target in (_LIVE, _READY, *OPEN_METHODS))
"""Targets that need no token: a platform's health checks carry none, and they say nothing else."""
_MODEL = re.compile(
    r"/(?:v[12]/models|predict|observe)/([^/:]+)(?:/versions/([^/:]+))?(?:[/:][a-z]+)?"
)


ROUTES: tuple[type[Route], ...] = (RowsRoute, InferRoute, PredictRoute, *GRPC_ROUTES)
"""The ways to ask a version; each loaded version gets one of each."""


class Application:
    """Answers requests for the models that it was given.

    Args:
        service: what every call needs.
        token: what ``Authorization: Bearer`` must bring; None lets everyone in.
    """

    def __init__(self, service: Service, token: str | None = None) -> None:
        self.releases: dict[str, Release] = {}
        self._ready = False
        self.streams: dict[bytes, Callable[[GrpcStream], None]] = {}
        self._service = service
        self._with_token = token is not None
        self.entrance = Entrance(service, token, _OPEN)
        self._other = Series(service, "", "", "other")
        self._routes: dict[str, dict[Model, dict[str, Route]]] = {}
        self._answers: dict[str, dict[tuple[str, str], Answer]] = {}
        self._of_model: dict[str, dict[str, Methods]] = {}
        self._shadows: dict[str, Shadow] = {}
        self.management: Management | None = None
        """Answers who manages; None until :meth:`manage`."""
        self._statistics = Series(service, "", "", "statistics")
        about = Series(service, "", "", "v2")

        def metadata(exchange: Exchange) -> object:
            body = json.dumps(server_metadata(exchange.managed)).encode()
            return about.answer(exchange, 200, body)

        health = Series(service, "", "", "health")
        metrics = Series(service, "", "", "metrics")
        docs = Series(service, "", "", "docs")
        self._fixed: dict[str, Methods] = {
            "/v2": _reading(metadata),
            "/v2/": _reading(metadata),
            _LIVE: _reading(lambda exchange: health.answer(exchange, 200, b'{"live":true}')),
            _READY: _reading(lambda exchange: self._readiness(health, exchange)),
            "/v2/models/stats": _reading(self._telling()),
            "/metrics": _reading(
                lambda exchange: metrics.answer(exchange, 200, service.metrics.text(), CONTENT_TYPE)
            ),
            "/openapi.json": _reading(
                lambda exchange: docs.answer(
                    exchange, 200, json.dumps(self._document(exchange.managed)).encode()
                )
            ),
            "/docs": _reading(
                lambda exchange: docs.answer(
                    exchange, 200, page(self._document(exchange.managed)), HTML, PAGE_HEADERS
                )
            ),
        }
        self._grpc = GrpcServices(self, service)
        for target, answer in self._grpc.unary.items():
            self._fixed[target] = {b"POST": answer}
        for target, opened in self._grpc.streams.items():
            self.streams[target.encode()] = opened
        self._table: dict[bytes, Methods] = {}
        self._fill()

    async def prepare(self) -> None:
        """Make what some requests would else be the first to wait for: a start does not, which is
        why this is called once requests are taken."""
        await asyncio.to_thread(own_version)
        await self._grpc.prepare()
        gc.freeze()  # as what was there before, it stays

    @property
    def ready(self) -> bool:
        """Whether requests are taken; who watches over gRPC is told when it changes."""
        return self._ready

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._ready = ready
        self._grpc.readiness_changed()

    def install(self, release: Release) -> None:
        """Share the requests of an alias among these versions, from the next request on."""
        name = release.name
        self.releases[name] = release
        self._routes[name] = {
            model: self._routes.get(name, {}).get(model) or self._of_version(model)
            for model in release.models
        }
        self._cast(release)
        versions = ["", *(model.version for model in release.models)]
        self._answers[name] = {
            (route.name, version): self._answer(release, route.name, version)
            for route in ROUTES
            for version in versions
        }
        targets: dict[str, Methods] = {}
        for version, model in (("", release.stable), *((m.version, m) for m in release.models)):
            v1, v2 = f"/v1/models/{name}", f"/v2/models/{name}"
            if version:
                v1, v2 = f"{v1}/versions/{version}", f"{v2}/versions/{version}"
            metadata = model_metadata(model, [m.version for m in release.models])
            targets[v2] = _reading(self._constant("v2", metadata, model))
            config = model_config(model, self._service.engine.batching)
            targets[f"{v2}/config"] = _reading(self._constant("v2", config, model))
            targets[f"{v2}/stats"] = _reading(self._telling(name, version))
            ready = {"name": name, "ready": True}
            targets[f"{v2}/ready"] = _reading(self._constant("v2", ready, model))
            targets[v1] = _reading(self._constant("tfs", status(model), model))
            targets[f"{v2}/infer"] = {b"POST": self.route(InferRoute.name, name, version)}
            targets[f"{v1}:predict"] = {b"POST": self.route(PredictRoute.name, name, version)}
        targets[f"/predict/{name}"] = {b"POST": self.route(RowsRoute.name, name)}
        state = None if self._service.states is None else self._service.states.of(name)
        if state is not None:
            observing = Observing(state, self._service)
            targets[f"/observe/{name}"] = {**_reading(observing.tell), b"POST": observing}
        self._of_model[name] = targets
        self._hang(release, targets)
        self._fill()
        self._grpc.readiness_changed()

    def manage(self, repository: Repository, memory: SharedMemory) -> None:
        """Let aliases be loaded and unloaded, and shared memory be registered."""
        self.management = Management(repository, memory, self._service)

    def remove(self, name: str) -> None:
        """Take no more requests for an alias."""
        del self.releases[name], self._routes[name], self._answers[name], self._of_model[name]
        shadow = self._shadows.pop(name, None)
        if shadow is not None:
            shadow.close()
        self.entrance.hang(name, {})
        self._fill()
        self._grpc.readiness_changed()

    @property
    def able(self) -> bool:
        """Whether requests are taken, and every alias that should be loaded is."""
        return self.ready and (self.management is None or not self.management.repository.lacking)

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """What each version has done, over all processes, as V2's statistics extension tells it.

        Args:
            name: an alias; empty for all.
            version: one of its versions; empty for all of them.

        Raises:
            ValueError: no such alias, or it has no such version.
        """
        if name:
            self.route(InferRoute.name, name, version)
        versions = [
            (model.name, model.version)
            for release in self.releases.values()
            for model in release.models
            if name in ("", model.name) and version in ("", model.version)
        ]
        metrics = self._service.metrics
        return model_statistics(versions, metrics.statistics.numbers(), metrics.others())

    def _hang(self, release: Release, targets: Mapping[str, Methods]) -> None:
        """Put gates before what is asked for predictions; of shared ones the stable is asked."""
        routes: dict[bytes, Route] = {}
        for target, methods in targets.items():
            answer = methods.get(b"POST")
            route = answer.stable if isinstance(answer, Split) else answer
            if isinstance(route, Route):
                routes[target.encode()] = route
        self.entrance.hang(release.name, routes)

    def _telling(self, name: str = "", version: str = "") -> Answer:
        def answer(exchange: Exchange) -> object:
            body = json.dumps(self.statistics(name, version)).encode()
            return self._statistics.answer(exchange, 200, body)

        return answer

    def _cast(self, release: Release) -> None:
        """Tell the routes of each version its role, and of the shadow that is to hear of them."""
        shadow = self._shadows.get(release.name)
        if shadow is not None and shadow.model is not release.shadow:
            self._shadows.pop(release.name).close()
            shadow = None
        if shadow is None and release.shadow is not None:
            shadow = Shadow(release.shadow, self._service, asyncio.get_running_loop())
            self._shadows[release.name] = shadow
        for role, model in release.roles:
            heard = shadow is not None and role != "shadow"
            mirror = shadow.beside(model) if shadow is not None and heard else None
            for route in self._routes[release.name][model].values():
                route.role, route.echo = role, mirror

    def shut_down(self) -> None:
        """Ask shadows no more."""
        for shadow in self._shadows.values():
            shadow.close()

    def _of_version(self, model: Model) -> dict[str, Route]:
        return {route.name: route(model, self._service) for route in ROUTES}

    def route(self, kind: str, name: str, version: str = "") -> Answer:
        """Where a call goes.

        Args:
            kind: the name of a class of :data:`ROUTES`.
            name: an alias.
            version: one of its versions; empty shares the calls as the alias says.

        Raises:
            ValueError: no such alias, or it has no such version; names the nearest.
        """
        answers = self._answers.get(name)
        if answers is None:
            raise self._absent(name)
        answer = answers.get((kind, version))
        if answer is None:
            found = [model.version for model in self.releases[name].models]
            raise unknown("version", version, found, f"model {name!r}")
        return answer

    def _absent(self, name: str) -> ValueError:
        repository = None if self.management is None else self.management.repository
        if repository is None or name not in repository.names:
            return unknown("model", name, self.releases)
        return ValueError(f"model {name!r} is not loaded.")

    def _answer(self, release: Release, kind: str, version: str) -> Answer:
        routes = self._routes[release.name]
        if version:
            return next(r[kind] for model, r in routes.items() if model.version == version)
        stable = routes[release.stable][kind]
        if release.canary is None or not release.share:
            return stable
        return Split(stable, routes[release.canary][kind], release.share)

    def _fill(self) -> None:
        table = {target.encode(): methods for target, methods in self._fixed.items()}
        for targets in self._of_model.values():
            table.update((target.encode(), methods) for target, methods in targets.items())
        self._table = table

    def __call__(self, exchange: Exchange) -> None:
        """Answer a request now, or queue it for the next run of its model."""
        methods = self._table.get(exchange.target)
        answer = None if methods is None else methods.get(exchange.method)
        if answer is None:
            answer = self._found(exchange)
        if answer is not None and (
            b"content-encoding" not in exchange.headers or self._inflated(exchange)
        ):
            answer(exchange)

    def _found(self, exchange: Exchange) -> Answer | None:
        """Who answers a target that is written in an unusual way, or None: the client is told."""
        path = unquote(exchange.target.partition(b"?")[0].decode("latin-1"))
        methods = self._table.get(path.encode())
        if methods is None and self.management is not None:
            methods = self.management.find(path)
        if methods is None:
            self._other.refuse(exchange, exchange.missing, self._nearest(exchange, path))
        elif exchange.method not in methods:
            found = exchange.method.decode("latin-1")
            allowed = ", ".join(sorted(method.decode() for method in methods))
            message = f"method: found {found}, allowed: {allowed} at this target."
            self._other.refuse(exchange, 405, message, f"Allow: {allowed}\r\n".encode())
        else:
            return methods[exchange.method]
        return None

    def _inflated(self, exchange: Exchange) -> bool:
        """Take the compression off a body, if there is one; whether that could be done."""
        coding, most = exchange.headers[b"content-encoding"], self._service.tensor_bytes
        try:
            if exchange.body:
                exchange.body = inflate("body", exchange.body, coding, most)
        except RefusedError as error:
            self._other.refuse(exchange, error.status, str(error))
            return False
        return True

    def _nearest(self, exchange: Exchange, path: str) -> str:
        match = _MODEL.fullmatch(path)
        if match is None:
            calls = {*self._grpc.unary, *self._grpc.streams}
            targets = [target.decode() for target in self._table]
            if exchange.missing != Exchange.missing:
                return str(unknown("method", path, calls))
            return str(unknown("target", path, [name for name in targets if name not in calls]))
        name, version = match.groups()
        try:
            self.route(InferRoute.name, name, version or "")
        except ValueError as error:
            return str(error)
        return str(unknown("target", path, self._of_model[name]))

    def _document(self, managed: bool) -> dict[str, Any]:
        names = () if self.management is None else self.management.repository.names
        return document(
            [release.stable for release in self.releases.values()],
            own_version(),
            token=self._with_token,
            loadable=names if managed else (),
        )

    def _readiness(self, series: Series, exchange: Exchange) -> None:
        body = b'{"ready":true}' if self.able else b'{"ready":false}'
        series.answer(exchange, 200 if self.able else 503, body)

    def _constant(self, route: str, data: dict[str, Any], model: Model | None = None) -> Answer:
        name, version = (model.name, model.version) if model else ("", "")
        series = Series(self._service, name, version, route)
        body = json.dumps(data).encode()
        return lambda exchange: series.answer(exchange, 200, body)


def _reading(answer: Answer) -> Methods:
    return {b"GET": answer, b"HEAD": answer}
