"""Which request goes where: the table of targets, the token, health, metadata, docs, metrics."""

import hmac
import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from drivetrain.core.errors import unknown
from drivetrain.serve.calls import Series, Service
from drivetrain.serve.exchange import Exchange
from drivetrain.serve.metrics import CONTENT_TYPE
from drivetrain.serve.models import Model
from drivetrain.serve.openapi import PAGE_HEADERS, document, page
from drivetrain.serve.rows import RowsRoute
from drivetrain.serve.tfserving import PredictRoute, status
from drivetrain.serve.v2 import InferRoute, model_metadata, server_metadata

Answer = Callable[[Exchange], object]
Methods = Mapping[bytes, Answer]

HTML = b"text/html; charset=utf-8"
_LIVE, _READY = "/v2/health/live", "/v2/health/ready"
_OPEN = frozenset({_LIVE, _READY})
"""Targets that need no token: a platform's health checks carry none, and they say nothing else."""
_MODEL = re.compile(r"/(?:v[12]/models|predict)/([^/:]+)(?:/versions/([^/:]+))?(?:[/:][a-z]+)?")


class Application:
    """Answers requests for the models that it was given.

    Args:
        service: what every call needs.
        token: what ``Authorization: Bearer`` must bring; None lets everyone in.
    """

    def __init__(self, service: Service, token: str | None = None) -> None:
        self.models: dict[str, Model] = {}
        self.ready = False
        self._service = service
        self._token = None if token is None else f"Bearer {token}".encode()
        self._other = Series(service, "", "", "other")
        self._of_model: dict[str, dict[str, Methods]] = {}
        metadata = self._constant("v2", server_metadata())
        health = Series(service, "", "", "health")
        metrics = Series(service, "", "", "metrics")
        docs = Series(service, "", "", "docs")
        self._fixed: dict[str, Methods] = {
            "/v2": _reading(metadata),
            "/v2/": _reading(metadata),
            _LIVE: _reading(lambda exchange: health.answer(exchange, 200, b'{"live":true}')),
            _READY: _reading(lambda exchange: self._readiness(health, exchange)),
            "/metrics": _reading(
                lambda exchange: metrics.answer(exchange, 200, service.metrics.text(), CONTENT_TYPE)
            ),
            "/openapi.json": _reading(
                lambda exchange: docs.answer(exchange, 200, json.dumps(self._document()).encode())
            ),
            "/docs": _reading(
                lambda exchange: docs.answer(
                    exchange, 200, page(self._document()), HTML, PAGE_HEADERS
                )
            ),
        }
        self._table: dict[bytes, Methods] = {}
        self._fill()

    def install(self, model: Model) -> None:
        """Serve a version under its alias, from the next request on."""
        service = self._service
        infer = {b"POST": InferRoute(model, service)}
        metadata = self._constant("v2", model_metadata(model), model)
        ready = self._constant("v2", {"name": model.name, "ready": True}, model)
        predict = {b"POST": PredictRoute(model, service)}
        state = self._constant("tfs", status(model), model)
        targets: dict[str, Methods] = {
            f"/predict/{model.name}": {b"POST": RowsRoute(model, service)}
        }
        for base in (
            f"/v2/models/{model.name}",
            f"/v2/models/{model.name}/versions/{model.version}",
        ):
            targets[base] = _reading(metadata)
            targets[f"{base}/ready"] = _reading(ready)
            targets[f"{base}/infer"] = infer
        for base in (
            f"/v1/models/{model.name}",
            f"/v1/models/{model.name}/versions/{model.version}",
        ):
            targets[base] = _reading(state)
            targets[f"{base}:predict"] = predict
        self.models[model.name] = model
        self._of_model[model.name] = targets
        self._fill()

    def _fill(self) -> None:
        table = {target.encode(): methods for target, methods in self._fixed.items()}
        for targets in self._of_model.values():
            table.update((target.encode(), methods) for target, methods in targets.items())
        self._table = table

    def __call__(self, exchange: Exchange) -> None:
        """Answer a request now, or queue it for the next run of its model."""
        methods = self._table.get(exchange.target)
        path = ""
        if methods is None:
            path = unquote(exchange.target.partition(b"?")[0].decode("latin-1"))
            methods = self._table.get(path.encode())
        if self._token is not None and not self._allowed(exchange):
            message = "header 'authorization': found no valid token, allowed: Bearer TOKEN."
            self._other.refuse(exchange, 401, message, b"WWW-Authenticate: Bearer\r\n")
        elif methods is None:
            self._other.refuse(exchange, 404, self._nearest(path))
        elif exchange.method not in methods:
            found = exchange.method.decode("latin-1")
            allowed = ", ".join(sorted(method.decode() for method in methods))
            message = f"method: found {found}, allowed: {allowed} at this target."
            self._other.refuse(exchange, 405, message, f"Allow: {allowed}\r\n".encode())
        else:
            methods[exchange.method](exchange)

    def count_refusal(self, status: int) -> None:
        """Count a request that broke off before it was one."""
        self._service.metrics.requests.of("", "", "http", str(status)).value += 1

    def _allowed(self, exchange: Exchange) -> bool:
        if exchange.target.decode("latin-1") in _OPEN:
            return True
        assert self._token is not None
        found = exchange.headers.get(b"authorization", b"")
        return hmac.compare_digest(found, self._token)

    def _nearest(self, path: str) -> str:
        match = _MODEL.fullmatch(path)
        if match is None:
            return str(unknown("target", path, [target.decode() for target in self._table]))
        name, version = match.groups()
        if name not in self.models:
            return str(unknown("model", name, self.models))
        if version is not None and version != self.models[name].version:
            return str(unknown("version", version, [self.models[name].version], f"model {name!r}"))
        return str(unknown("target", path, self._of_model[name]))

    def _document(self) -> dict[str, Any]:
        version = server_metadata()["version"]
        return document(self.models.values(), version, token=self._token is not None)

    def _readiness(self, series: Series, exchange: Exchange) -> None:
        body = b'{"ready":true}' if self.ready else b'{"ready":false}'
        series.answer(exchange, 200 if self.ready else 503, body)

    def _constant(self, route: str, data: dict[str, Any], model: Model | None = None) -> Answer:
        name, version = (model.name, model.version) if model else ("", "")
        series = Series(self._service, name, version, route)
        body = json.dumps(data).encode()
        return lambda exchange: series.answer(exchange, 200, body)


def _reading(answer: Answer) -> Methods:
    return {b"GET": answer, b"HEAD": answer}
