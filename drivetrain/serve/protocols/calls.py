"""One inference call from its bytes to its answer: identity, time-out, errors, and its records."""

import logging
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.serve.execution.columns import UnfitError, Values
from drivetrain.serve.execution.engine import Engine
from drivetrain.serve.execution.filling import AwayError
from drivetrain.serve.execution.models import Model, Role
from drivetrain.serve.execution.predicted import observe
from drivetrain.serve.execution.task import ExpiredError, OverloadedError, Task, held
from drivetrain.serve.protocols.identity import PLAIN_ID, RequestIds, header_id
from drivetrain.serve.state.states import States
from drivetrain.serve.telemetry.access import entry
from drivetrain.serve.telemetry.family import Counter
from drivetrain.serve.telemetry.metrics import Metrics
from drivetrain.serve.telemetry.spans import Request, Timing
from drivetrain.serve.telemetry.traces import Traces, parent
from drivetrain.serve.transport.exchange import (
    JSON,
    NOT_MANAGED,
    RETRY,
    Exchange,
    RefusedError,
)
from drivetrain.serve.workers.shared_memory import Place, SharedMemory

log = logging.getLogger("drivetrain.serve")


class Recorder(Protocol):
    """Takes calls as events; :class:`drivetrain.serve.telemetry.feedback.Feedback` is one."""

    def offer(
        self,
        model: Model,
        request_id: str,
        latency: float,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
        role: Role = "stable",
    ) -> None:
        """Keep or drop, at once; on any thread."""
        ...


class Echo(Protocol):
    """Is told what was answered; :class:`drivetrain.serve.versions.shadow.Mirror` is one."""

    def offer(self, request_id: str, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Take or drop, at once."""
        ...


@dataclass(frozen=True, kw_only=True)
class Service:
    """What every call needs beside its model.

    Attributes:
        engine: runs it.
        metrics: counts it.
        request_ids: names it.
        recorder: writes it as an event, or None.
        access: takes what the access log says of each answer, or None.
        traces: takes the requests that are traced, or None.
        shared_memory: where tensors of requests that may use it lie, or None.
        states: keeps what windows are read off, or None.
        tensor_bytes: what the inputs of a request may take in shared memory, and its body when
            the compression is off.
    """

    engine: Engine
    metrics: Metrics
    request_ids: RequestIds
    recorder: Recorder | None = None
    access: Callable[[Mapping[str, Any]], None] | None = None
    traces: Traces | None = None
    shared_memory: SharedMemory | None = None
    states: States | None = None
    tensor_bytes: int = 16 << 20


class Series:
    """The metrics of one route of one version, looked up once."""

    def __init__(self, service: Service, model: str, version: str, route: str) -> None:
        self._service = service
        self._labels = (model, version, route)
        self._seconds = service.metrics.request_seconds.of(model, version, route)
        self._codes: dict[int, Counter] = {}
        self.told = service.access is not None or service.traces is not None
        """Whether somebody is told of each request."""

    def answer(
        self,
        exchange: Exchange,
        status: int,
        body: bytes,
        kind: bytes = JSON,
        extra: bytes = b"",
        call: "Call | None" = None,
    ) -> float:
        """Answer and record it; gives the request's duration in seconds."""
        exchange.respond(status, body, kind, extra)
        return self._record(exchange, status, len(body), call)

    def refuse(
        self,
        exchange: Exchange,
        status: int,
        message: str,
        extra: bytes = b"",
        call: "Call | None" = None,
    ) -> None:
        """Answer an error, in the form of the exchange's protocol, and record it."""
        self._record(exchange, status, exchange.refuse(status, message, extra), call)

    def _record(self, exchange: Exchange, status: int, size: int, call: "Call | None") -> float:
        seconds = time.monotonic() - exchange.received
        self._counter(status).value += 1
        durations = self._seconds  # as Histogram.observe does, for which every request would call
        durations.counts[bisect_left(durations.bounds, seconds)] += 1
        durations.sum += seconds
        if self.told:
            self._tell(exchange, status, size, seconds, call)
        return seconds

    def answered(self, calls: Sequence[Task]) -> None:
        """Record calls that were answered 200 at once, where nobody is told of each."""
        self._counter(200).value += len(calls)
        now = time.monotonic()
        observe(self._seconds, np.array([now - call.received for call in calls]))

    def _counter(self, status: int) -> Counter:
        counter = self._codes.get(status)
        if counter is None:
            counter = self._service.metrics.requests.of(*self._labels, str(status))
            self._codes[status] = counter
        return counter

    def _tell(
        self, exchange: Exchange, status: int, size: int, seconds: float, call: "Call | None"
    ) -> None:
        """Give what became of a request to those who are told of each."""
        access, traces = self._service.access, self._service.traces
        headers = exchange.headers
        # Most callers that know of traces ask for none, and need not be read any further.
        if access is None and headers.get(b"traceparent", b"").endswith(b"-00"):
            return
        context = parent(headers.get(b"traceparent")) if traces is None else traces.sample(headers)
        traced = traces is not None and context is not None and context.sampled
        if access is None and not traced:
            return
        request = Request(
            exchange.method.decode("latin-1"),
            exchange.target.decode("latin-1"),
            *self._labels,
            status,
            size,
            "" if call is None else call.request_id,
            exchange.received,
            exchange.received + seconds,
            _timing(call),
            exchange.client,
        )
        if traced:
            assert traces is not None
            assert context is not None
            traces.offer(context, headers.get(b"tracestate", b""), request)
        if access is not None:
            access(entry(request, context))


def _timing(task: "Call | None") -> Timing | None:
    if task is None or task.run is None:
        return None
    run = task.run
    return Timing(task.rows, run.rows, task.queued, run.begun, run.inferred)


class Call(Task):
    """An inference request; its route decodes it and encodes its answer.

    Args:
        route: where it came.
        exchange: the request.
        columns: the checked columns.
        rows: how many rows they have.
        request_id: its identity in the body; None takes the header's, or makes one.
        timeout: seconds that its client waits at most.
        options: what the route wants to know again when it encodes the answer.
        beside: bytes of its inputs that are not in its body.
    """

    __slots__ = ("_named", "exchange", "options", "shown")

    route: "Route"  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        route: "Route",
        exchange: Exchange,
        columns: Sequence[Values],
        rows: int,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
        options: Any = None,
        beside: int = 0,
    ) -> None:
        deadline = math.inf if exchange.deadline is None else exchange.deadline
        if timeout is not None:
            deadline = min(deadline, exchange.received + timeout)
        self.model = route.model  # as Task does, for which every request would call
        self.columns = columns
        self.rows = rows
        self.deadline = deadline
        self.received = self.queued = exchange.received
        self.run = None
        self.holds = held(columns, rows, len(exchange.body) + beside)
        self.route = route
        self.exchange = exchange
        self.options = options
        self._named = None
        if request_id is None and b"x-request-id" not in exchange.headers:
            shown = route.service.request_ids.make()
        else:
            name = self._named = request_id or header_id(exchange)
            if name is None:
                shown = route.service.request_ids.make()
            elif PLAIN_ID.fullmatch(name):
                shown = name.encode()
            else:
                shown = quote(name, safe="").encode()
        self.shown = shown
        """The identity as a header says it."""
        exchange.on_gone = self.cancel

    @property
    def request_id(self) -> str:
        """Its identity: what the client named it, or what was made for it."""
        return self._named or self.shown.decode()

    def done(self, inputs: Sequence[Array], outputs: list[Array]) -> None:
        exchange, route = self.exchange, self.route
        exchange.on_gone = None  # or the two would hold each other until a collection
        body, kind, extra = route.encode(self, outputs)
        extra = b"x-request-id: %b\r\n%b" % (self.shown, extra)
        seconds = route.series.answer(exchange, 200, body, kind, extra, self)
        recorder = route.service.recorder
        if recorder is not None:
            recorder.offer(self.model, self.request_id, seconds, inputs, outputs, route.role)
        if route.echo is not None:
            route.echo.offer(self.request_id, inputs, outputs)

    def failed(self, error: Exception) -> None:
        self.exchange.on_gone = None
        if self.exchange.answered:  # what came behind the answer failed, not the request
            log.error("request %s was answered and not recorded", self.request_id, exc_info=error)
        elif isinstance(error, ExpiredError):
            self._fail(504, "timeout: it was over before the run began; nothing was computed.")
        elif isinstance(error, UnfitError):
            self._fail(400, str(error))
        elif isinstance(error, AwayError):
            self._fail(503, str(error), RETRY)
        elif type(error).__name__ == "InvalidArgument":  # what ONNX Runtime calls bad values
            self._fail(400, f"the graph refuses these values: {str(error)[:300]}")
        else:
            log.error("request %s failed", self.request_id, exc_info=error)
            self._fail(500, f"the graph failed on request {self.request_id!r}; the log says why.")

    def _fail(self, status: int, message: str, extra: bytes = b"") -> None:
        extra = b"x-request-id: %b\r\n%b" % (self.shown, extra)
        self.route.series.refuse(self.exchange, status, message, extra, self)


class Route:
    """One way to ask one version for predictions.

    Args:
        model: the version that answers.
        service: what every call needs.
    """

    name = ""
    """The label ``route`` of the metrics."""

    def __init__(self, model: Model, service: Service) -> None:
        self.model = model
        self.service = service
        self.series = Series(service, model.name, model.version, self.name)
        self.role: Role = "stable"
        """What the version is to its alias now."""
        self.echo: Echo | None = None
        """Is told of each answer."""
        self.most_rows = service.engine.batching.most_rows
        """In one request."""
        self._tally = service.metrics.statistics.of(model.name, model.version)

    def decode(self, exchange: Exchange) -> Call:
        """The call that a request makes.

        Raises:
            ValueError: it cannot be understood; the message names what, found and allowed.
        """
        raise AssertionError("a route decodes its calls")

    def encode(self, call: Call, outputs: list[Array]) -> tuple[bytes, bytes, bytes]:
        """Body, content type and further header lines of the answer."""
        raise AssertionError("a route encodes its answers")

    def answer_together(
        self,
        tasks: Sequence[Call],
        outputs: Sequence[Array],
        fail: Callable[[Task, Exception], object],
    ) -> list[Task] | None:
        """As :class:`drivetrain.serve.execution.task.Answering` has it; a route that can says how
        in :meth:`encode_together`."""
        if self.series.told or self.echo is not None or self.service.recorder is not None:
            return None
        encoded = self.encode_together(tasks, outputs)
        if encoded is None:
            return None
        bodies, kind, extra = encoded
        good: list[Task] = []
        for call, body in zip(tasks, bodies, strict=True):
            exchange = call.exchange
            exchange.on_gone = None
            try:
                lines = b"x-request-id: %b\r\n%b" % (call.shown, extra)
                exchange.respond(200, body, kind, lines)
                good.append(call)
            except Exception as error:  # one answer that cannot be written must not take others
                fail(call, error)
        self.series.answered(good)
        return good

    def encode_together(
        self, calls: Sequence[Call], outputs: Sequence[Array]
    ) -> tuple[Sequence[bytes], bytes, bytes] | None:
        """The bodies of answers of one row each, and what is the same for all of them: content
        type and further header lines. None where they are encoded one by one."""
        return None

    def __call__(self, exchange: Exchange) -> None:
        """Decode a request and queue it, or say what is wrong with it."""
        engine = self.service.engine
        try:
            if engine.full:
                engine.admit(self.model)
            call = self.decode(exchange)
            if call.rows != 1:
                self.check_rows(call.rows)
            engine.submit(call)
        except ValueError as error:
            self.refuse(exchange, 400, str(error))
        except RefusedError as error:
            self.refuse(exchange, error.status, str(error))
        except OverloadedError as error:
            self.refuse(exchange, 503, str(error), RETRY)

    def check_rows(self, rows: int) -> None:
        """See that a request has no more rows than may be; the sooner, the less they take.

        Raises:
            ValueError: it has more, or none.
        """
        if not 1 <= rows <= self.most_rows:
            raise wrong("rows", rows, f"1 to {self.most_rows} in one request")

    def refuse(self, exchange: Exchange, status: int, message: str, extra: bytes = b"") -> None:
        """Answer an error before anything was computed."""
        self.series.refuse(exchange, status, message, extra)
        self._tally.failed(time.monotonic() - exchange.received)


def shared_memory(service: Service, exchange: Exchange) -> SharedMemory:
    """The regions that a request may name.

    Raises:
        RefusedError: 403, none where it came in.
    """
    if service.shared_memory is None or not exchange.managed:
        raise RefusedError(403, f"shared memory: {NOT_MANAGED}")
    return service.shared_memory


def read_input(service: Service, exchange: Exchange, name: str, place: Place, before: int) -> bytes:
    """A copy of the bytes of an input that lies in shared memory.

    Args:
        service: what every call needs.
        exchange: the request.
        name: the input's.
        place: where it lies.
        before: bytes of the inputs before it.

    Raises:
        ValueError: there is no such place.
        RefusedError: 403, it came in where there is no shared memory; 413, it is too long.
    """
    where, size = f"input {name!r}", before + place.byte_size
    memory = shared_memory(service, exchange)
    if size > service.tensor_bytes:
        raise RefusedError(
            413,
            f"{where}: found {size} bytes of inputs in shared memory, allowed: "
            f"{service.tensor_bytes}.",
        )
    return memory.read(where, place)
