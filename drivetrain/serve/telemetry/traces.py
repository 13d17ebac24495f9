"""Traces for OpenTelemetry: which requests are traced, and a thread that sends their spans.

Source of the headers: W3C Trace Context.
"""

import logging
import random
import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drivetrain.core.errors import wrong
from drivetrain.core.need import need
from drivetrain.serve.telemetry.family import Counter
from drivetrain.serve.telemetry.spans import Context, Request, Spans

log = logging.getLogger("drivetrain.serve")

_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_SECONDS = 1.0
_TIMEOUT_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
_EXPORTED = 512
"""Requests of one export, each with up to three spans."""
_CONTEXT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """Where spans go, and of how many requests.

    Attributes:
        endpoint: an OTLP/HTTP address, such as ``http://127.0.0.1:4318/v1/traces``. Headers, and
            certificates of its own, come from OpenTelemetry's variables
            (``OTEL_EXPORTER_OTLP_HEADERS`` …), and so does the service's name.
        share: of the requests that bring no ``traceparent`` header; one that brings it has
            decided for itself.
        queue: requests whose spans wait to be sent; of more nothing is kept, and that is counted.

    Raises:
        ValueError: the endpoint is no such address, or a number is out of its range.
        ImportError: OpenTelemetry is not installed.
    """

    endpoint: str
    share: float = 0.1
    queue: int = 4096

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/]+", self.endpoint):
            raise wrong("traces", self.endpoint, "an address such as http://host:4318/v1/traces")
        if not 0.0 <= self.share <= 1.0:
            raise wrong("traces_share", self.share, "a share of the requests, from 0.0 to 1.0")
        if self.queue < 1:
            raise wrong("queue", self.queue, "one request or more")
        need(_EXPORTER, "otel")  # before a fork, so that its pages are shared


def parent(header: bytes | None) -> Context | None:
    """What a ``traceparent`` header says; None if there is none or it must be ignored.

    A version to come may say more behind what version 00 says (§2.2.1 ff. of the specification).
    """
    if header is None:
        return None
    match = _CONTEXT.fullmatch(header.decode("latin-1"))
    if match is None or (match[1] == "00" and match[5]):
        return None
    context = Context(int(match[2], 16), int(match[3], 16), bool(int(match[4], 16) & 1))
    return context if context.trace_id and context.span_id else None


class Traces:
    """Sends the spans of sampled requests to a collector, from a thread.

    Args:
        tracing: where to, and of how many.
        spans: counts the spans that were sent.
        dropped: counts the requests whose spans were not.
    """

    def __init__(self, tracing: Tracing, spans: Counter, dropped: Counter) -> None:
        self._tracing = tracing
        self._spans = spans
        self._dropped = dropped
        self._random = random.Random()
        self._share = tracing.share
        self._queue: deque[tuple[Context, bytes, Request]] = deque()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drivetrain-traces", daemon=True)
        self._thread.start()

    def sample(self, headers: Mapping[bytes, bytes]) -> Context | None:
        """The context of a request, None if it has none and is not sampled."""
        header = headers.get(b"traceparent")
        if header is not None:
            found = parent(header)
            if found is not None:
                return found
        if self._random.random() >= self._share:
            return None
        return Context(self._random.getrandbits(128) or 1, 0, True)

    def offer(self, context: Context, state: bytes, request: Request) -> None:
        """Keep a request of a sampled context, or drop it when too many are held; never waits.

        Args:
            context: what :meth:`sample` gave.
            state: the ``tracestate`` header, which goes with the spans.
            request: what became of it.
        """
        if len(self._queue) >= self._tracing.queue:
            self._dropped.value += 1
            return
        self._queue.append((context, state, request))

    def close(self) -> None:
        """Send what is held, as far as that goes within two seconds, and end."""
        self._end.set()
        self._thread.join(_CLOSE_SECONDS)
        self._dropped.value += len(self._queue)

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        exporter = need(_EXPORTER, "otel").OTLPSpanExporter(
            endpoint=self._tracing.endpoint, timeout=_TIMEOUT_SECONDS
        )
        spans = Spans(self._random.getrandbits)
        ending = False
        while not ending:
            ending = self._end.wait(_SECONDS)
            while self._queue:
                taken = [self._queue.popleft() for _ in range(min(len(self._queue), _EXPORTED))]
                self._export(exporter, spans, taken)
        exporter.shutdown()

    def _export(
        self, exporter: Any, spans: Spans, taken: list[tuple[Context, bytes, Request]]
    ) -> None:
        try:
            made = [span for each in taken for span in spans.of(*each)]
            good = exporter.export(made).name == "SUCCESS"
        except Exception:  # these spans are lost, and the server goes on
            log.exception("%d traces could not be sent", len(taken))
            good = False
        if good:
            self._spans.value += len(made)
        else:
            self._dropped.value += len(taken)
