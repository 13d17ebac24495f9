"""Who is let in by the head of a request alone: a token, a page's origin, a queue that is full."""

import asyncio
import hmac
from collections.abc import Callable, Mapping
from time import monotonic

from drivetrain.serve.execution.models import Model
from drivetrain.serve.protocols.calls import Route, Service
from drivetrain.serve.telemetry.access import entry
from drivetrain.serve.telemetry.spans import Request
from drivetrain.serve.transport.exchange import RefusedError, address
from drivetrain.serve.transport.gates import Gate, Gates

_NO_TOKEN = "header 'authorization': found no valid token, allowed: Bearer TOKEN."
_NO_PAGE = (
    "header 'origin': found a web page's, allowed: none where whoever reaches the port may manage."
)


class Entrance:
    """What is asked of every request before a byte of its content is kept.

    Args:
        service: its engine says which queues are full; its metrics and its access log are told of
            those who were not let in.
        token: what ``Authorization: Bearer`` must bring; None lets everyone in.
        open: targets that need no token.

    Attributes:
        gates: targets that take no requests for now.
    """

    def __init__(self, service: Service, token: str | None, open: frozenset[bytes]) -> None:
        self.gates = Gates()
        self._service = service
        self._token = None if token is None else token.encode()
        self._open = open
        self._doors: dict[str, dict[tuple[bytes, Model], Gate]] = {}
        service.engine.on_full = self._full

    def judge(
        self, method: bytes, target: bytes, headers: Mapping[bytes, bytes], managed: bool
    ) -> RefusedError | None:
        """Why a head alone has its request refused, or None.

        Args:
            method: such as ``b"POST"``.
            target: path and query.
            headers: names in lower case.
            managed: whether it came in where managing is allowed.
        """
        if self._token is None:
            # Any page that somebody opens beside a server may post to its loopback address, and by
            # DNS rebinding read the answer too. Browsers say whose page it is with every POST
            # (Fetch §3.1), and clients that are no browsers say nothing.
            if managed and method != b"GET" and b"origin" in headers:
                return RefusedError(403, _NO_PAGE)
            return None
        if target in self._open:
            return None
        # RFC 9110 §11.4: the scheme in any case, then one or more spaces.
        scheme, _, found = headers.get(b"authorization", b"").partition(b" ")
        if hmac.compare_digest(found.lstrip(b" "), self._token) and scheme.lower() == b"bearer":
            return None
        return RefusedError(401, _NO_TOKEN, b"WWW-Authenticate: Bearer\r\n")

    def refused(self, status: int, client: str, method: bytes = b"", target: bytes = b"") -> None:
        """Count and log a request that was none, or that its head alone had refused.

        Args:
            status: of the answer.
            client: the address that it came from.
            method: as far as it is known.
            target: the same.
        """
        self._service.metrics.requests.of("", "", "http", str(status)).value += 1
        self._log(status, client, method, target, ("", "", "http"))

    def hang(self, name: str, routes: Mapping[bytes, Route]) -> None:
        """Put gates before the targets of an alias, which close while a version's queue is full.

        Args:
            name: the alias.
            routes: for each target the version that answers, or the stable one; none takes the
                gates away.
        """
        before = self._doors.pop(name, {})
        now = {
            (target, route.model): before.get((target, route.model))
            or Gate(self.gates, target, self._teller(route, target))
            for target, route in routes.items()
        }
        for key, gate in before.items():
            if key not in now:
                gate.open()
        if now:
            self._doors[name] = now

    def _full(self, model: Model, why: str) -> None:
        """A version takes no requests for now, or takes them again."""
        for (_, behind), gate in self._doors.get(model.name, {}).items():
            if behind is model and why:
                gate.close(why)
            elif behind is model:
                gate.open()

    def _teller(self, route: Route, target: bytes) -> Callable[[asyncio.BaseTransport], None]:
        """Counts and logs who is sent away at a gate."""
        service, version = self._service, (route.model.name, route.model.version)
        labels = (*version, route.name)

        def tell(transport: asyncio.BaseTransport) -> None:
            service.metrics.requests.of(*labels, "503").value += 1
            service.metrics.statistics.of(*version).failed(0.0)
            if service.access is not None:
                self._log(503, address(transport), b"POST", target, labels)

        return tell

    def _log(
        self, status: int, client: str, method: bytes, target: bytes, labels: tuple[str, str, str]
    ) -> None:
        if self._service.access is not None:
            now = monotonic()
            asked = (method.decode("latin-1"), target.decode("latin-1"), *labels)
            request = Request(*asked, status, 0, "", now, now, None, client)
            self._service.access(entry(request, None))
