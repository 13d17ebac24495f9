"""An answered request as OpenTelemetry spans, by its semantic conventions for HTTP servers."""

import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)


class Context(NamedTuple):
    """Who asked, and whether they want to know.

    Attributes:
        trace_id: of the whole trace.
        span_id: of the caller's span; 0 where the trace begins here.
        sampled: whether spans are wanted.
    """

    trace_id: int
    span_id: int
    sampled: bool


class Timing(NamedTuple):
    """How a request went through a run of the graph, by ``time.monotonic()``.

    Attributes:
        rows: its own.
        batch_rows: of the run.
        queued: it began to wait.
        begun: the run began.
        ended: the run was over.
    """

    rows: int
    batch_rows: int
    queued: float
    begun: float
    ended: float


class Request(NamedTuple):
    """A request that was answered.

    Attributes:
        method: such as ``POST``.
        target: path and query.
        model: the alias; empty if it asked for none.
        version: of the model.
        route: the label of the metrics.
        status: of the answer.
        size: bytes of the answer.
        request_id: its identity; empty if it has none.
        received: ``time.monotonic()`` at its end.
        answered: ``time.monotonic()`` at its answer.
        timing: of its run; None if it came to none.
        client: the address that it came from; empty where that is not known.
    """

    method: str
    target: str
    model: str
    version: str
    route: str
    status: int
    size: int
    request_id: str
    received: float
    answered: float
    timing: Timing | None
    client: str = ""


class Spans:
    """Makes spans of answered requests.

    Args:
        bits: gives so many random bits.
    """

    def __init__(self, bits: Callable[[int], int]) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._bits = bits
        self._resource = Resource.create({} if _named() else {"service.name": "drivetrain"})
        self._scope = InstrumentationScope("drivetrain.serve")
        self._offset = 0

    def of(self, context: Context, state: bytes, request: Request) -> list["ReadableSpan"]:
        """The server's span, and within it those of the queue and of the run."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        self._offset = time.time_ns() - time.monotonic_ns()  # anew: clocks are set at times
        found = self._context(context.trace_id, context.span_id, state, remote=True)
        own = self._context(context.trace_id, self._bits(64) or 1, state)
        failed = request.status >= 500
        server = self._span(
            _name(request),
            own,
            found if context.span_id else None,
            request.received,
            request.answered,
            kind=SpanKind.SERVER,
            attributes=_attributes(request),
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
        )
        timing = request.timing
        if timing is None:
            return [server]
        rows = {"drivetrain.batch.rows": timing.batch_rows}
        parts = (("queue", timing.queued, timing.begun, {}), ("run", *timing[3:], rows))
        return [
            server,
            *(
                self._span(
                    name,
                    self._context(context.trace_id, self._bits(64) or 1, state),
                    own,
                    begun,
                    ended,
                    attributes=attributes,
                )
                for name, begun, ended, attributes in parts
            ),
        ]

    def _context(
        self, trace_id: int, span_id: int, state: bytes, remote: bool = False
    ) -> "SpanContext":
        from opentelemetry.trace import SpanContext, TraceFlags, TraceState

        return SpanContext(
            trace_id,
            span_id,
            remote,
            TraceFlags(TraceFlags.SAMPLED),
            TraceState.from_header([state.decode("latin-1")]) if state else None,
        )

    def _span(
        self,
        name: str,
        context: "SpanContext",
        above: "SpanContext | None",
        begun: float,
        ended: float,
        **rest: Any,
    ) -> "ReadableSpan":
        from opentelemetry.sdk.trace import ReadableSpan

        return ReadableSpan(
            name,
            context,
            above,
            self._resource,
            start_time=self._offset + int(begun * 1e9),
            end_time=self._offset + int(ended * 1e9),
            instrumentation_scope=self._scope,
            **rest,
        )


def _named() -> bool:
    """Whether the operator has named the service, in the variables that OpenTelemetry reads."""
    attributes = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return "OTEL_SERVICE_NAME" in os.environ or "service.name=" in attributes


def _template(request: Request) -> str:
    """The path with names in the place of what varies, or nothing where no target was found."""
    if request.route == "other":
        return ""
    path = request.target.partition("?")[0]
    path = re.sub(r"/(models|predict)/[^/:]+", r"/\1/{model}", path, count=1)
    return re.sub(r"/versions/[^/:]+", "/versions/{version}", path, count=1)


def _name(request: Request) -> str:
    method = request.method if request.method in _METHODS else "HTTP"
    return f"{method} {_template(request)}".rstrip()


def _attributes(request: Request) -> dict[str, Any]:
    path, _, query = request.target.partition("?")
    known = request.method in _METHODS
    found: dict[str, Any] = {
        "http.request.method": request.method if known else "_OTHER",
        "http.request.method_original": "" if known else request.method,
        "http.response.body.size": request.size,
        "http.response.status_code": request.status,
        "http.route": _template(request),
        "client.address": request.client.rpartition(":")[0].strip("[]"),
        "url.path": path,
        "url.query": query,
        "error.type": str(request.status) if request.status >= 500 else "",
        "drivetrain.model": request.model,
        "drivetrain.version": request.version,
        "drivetrain.route": request.route,
        "drivetrain.request_id": request.request_id,
    }
    if request.timing is not None:
        found["drivetrain.rows"] = request.timing.rows
        found["drivetrain.batch.rows"] = request.timing.batch_rows
    return {name: value for name, value in found.items() if value != ""}
