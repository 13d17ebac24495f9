"""The serving process: its socket, its models as aliases move, its signals and its end."""

import asyncio
import contextlib
import gc
import ipaddress
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from drivetrain.core.errors import wrong
from drivetrain.serve.application import Application
from drivetrain.serve.calls import RequestIds, Service
from drivetrain.serve.engine import Batching, Engine
from drivetrain.serve.feedback import Feedback
from drivetrain.serve.http import Connection, Http, HttpLimits
from drivetrain.serve.metrics import Counter, Metrics
from drivetrain.serve.models import Model, Resolve, checked_name, pinned

log = logging.getLogger("drivetrain.serve")

_BACKLOG = 1024
_SWITCH_SECONDS = 0.0005
_TICK_SECONDS = 0.25
_SETTLE_SECONDS = 0.25
"""How long a draining server waits for requests that were sent before the client could know."""


class Server:
    """Serves the bundles that aliases mean, and follows the aliases while it runs.

    Args:
        models: for each alias, a callable that gives the digest and the directory of its bundle
            now, or the directory of a bundle that stays. The callable is asked about once a second.
        host: the address to listen at.
        port: the port; 0 takes a free one.
        token: what clients bring as ``Authorization: Bearer``; must be set off loopback.
        feedback: a directory for events (see :class:`drivetrain.serve.feedback.Feedback`).
        access_log: gets one line of JSON for each answer.
        limits: what one client may take.
        batching: how requests share runs.
        reload_seconds: how often aliases are asked.
        drain_seconds: how long a server that was told to end still takes connections, for load
            balancers that need to see its readiness go first.
        grace_seconds: after that, how long it goes on answering what it has accepted.

    Raises:
        ValueError: an alias is no allowed name, or the address is not loopback and no token is set.
    """

    def __init__(
        self,
        models: Mapping[str, Resolve | Path],
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        token: str | None = None,
        feedback: Path | None = None,
        access_log: TextIO | None = None,
        limits: HttpLimits | None = None,
        batching: Batching | None = None,
        reload_seconds: float = 1.0,
        drain_seconds: float = 0.0,
        grace_seconds: float = 20.0,
    ) -> None:
        if not models:
            raise ValueError("models: found none, allowed: one or more to serve.")
        self._resolve = {
            checked_name(name): pinned(given) if isinstance(given, Path) else given
            for name, given in models.items()
        }
        if not _is_loopback(host) and not token:
            raise wrong(
                "host", host, "a loopback address, or any with a token that clients must bring"
            )
        self.host = host
        self.port = port
        self.metrics = Metrics()
        self._token = token or None
        self._feedback = feedback
        self._access_log = access_log
        self._limits = limits or HttpLimits()
        self._batching = batching or Batching()
        self._reload_seconds = reload_seconds
        self._drain_seconds = drain_seconds
        self._grace_seconds = grace_seconds
        self._refused: dict[str, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Where it listens; the port is known once it runs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def run(self, started: Callable[[], object] = lambda: None) -> int:
        """Serve until :meth:`stop`, SIGTERM or SIGINT, then answer what was accepted and end.

        SIGHUP asks the aliases at once. Signals are heeded on the main thread only.

        Args:
            started: called when requests are taken.

        Returns:
            0, or 1 if the grace ended before all requests were answered.

        Raises:
            OSError: the address is taken, or a bundle cannot be read.
            ValueError: a bundle is damaged.
        """
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            return runner.run(self._serve(started))

    def stop(self) -> None:
        """End as on SIGTERM; from any thread."""
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                loop.call_soon_threadsafe(stopping.set)

    # -- life ----------------------------------------------------------------------------------

    async def _serve(self, started: Callable[[], object]) -> int:
        loop = self._loop = asyncio.get_running_loop()
        stopping = self._stopping = asyncio.Event()
        again = asyncio.Event()
        lines: list[str] = []
        with contextlib.ExitStack() as stack:
            # Bound before anything is loaded, for a taken port is better known at once; it
            # listens only when there is something to serve.
            listener = stack.enter_context(_listen(self.host, self.port))
            self.port = listener.getsockname()[1]
            stack.callback(self._write_access, lines)
            engine = Engine(self._batching, self.metrics, loop)
            application = self._application(engine, lines, stack)
            stack.callback(engine.shut_down)
            http = Http(application, self._limits, application.count_refusal)
            stack.callback(http.abort)
            server = await loop.create_server(
                lambda: Connection(http), sock=listener, backlog=_BACKLOG
            )
            self._heed_signals(loop, stopping, again, http)
            # What was made until now stays: a full collection need not walk it each time.
            gc.collect()
            gc.freeze()
            stack.callback(gc.unfreeze)
            # A thread that computes in Python holds the loop up for this long, 5 ms by default.
            stack.callback(sys.setswitchinterval, sys.getswitchinterval())
            sys.setswitchinterval(_SWITCH_SECONDS)
            for work in (self._tick(http, lines), self._follow(application, engine, again)):
                stack.callback(loop.create_task(work).cancel)
            self._set_ready(application, True)
            started()
            await stopping.wait()
            self._set_ready(application, False)
            await asyncio.sleep(self._drain_seconds)
            left = await self._drain(http, server, listener)
        if left:
            log.error("%d requests had no answer when the grace of the end was over", left)
        return 1 if left else 0

    def _application(
        self, engine: Engine, lines: list[str], stack: contextlib.ExitStack
    ) -> Application:
        """The application with every alias installed; what must be closed goes on the stack."""
        feedback = None
        if self._feedback is not None:
            feedback = Feedback(self._feedback, self.metrics)
            stack.callback(feedback.close)
        service = Service(
            engine=engine,
            metrics=self.metrics,
            request_ids=RequestIds(),
            recorder=feedback,
            access=None if self._access_log is None else lines.append,
        )
        application = Application(service, self._token)
        for name, ask in self._resolve.items():
            self._install(application, engine, Model.load(name, *ask()))
        return application

    def _set_ready(self, application: Application, ready: bool) -> None:
        application.ready = ready
        self.metrics.ready.of().value = float(ready)

    async def _drain(
        self, http: Http, server: asyncio.AbstractServer, listener: socket.socket
    ) -> int:
        """Answer what was accepted; gives how many requests were left when the grace was over."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._grace_seconds
        listener.listen(0)  # what has connected is still taken, and hardly anything joins it
        await asyncio.sleep(0.02)
        http.draining = True
        server.close()
        settled = loop.time() + min(_SETTLE_SECONDS, self._grace_seconds / 2)
        while loop.time() < end and (http.unanswered or loop.time() < settled):
            await asyncio.sleep(0.01)
        left = http.unanswered
        http.close_idle()
        while loop.time() < end and http.connections:
            await asyncio.sleep(0.01)
        return left

    def _heed_signals(
        self,
        loop: asyncio.AbstractEventLoop,
        stopping: asyncio.Event,
        again: asyncio.Event,
        http: Http,
    ) -> None:
        if threading.current_thread() is not threading.main_thread():
            return

        def end() -> None:
            if stopping.is_set():  # a second signal: whoever sends it does not want to wait
                http.abort()
            stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, again.set)

    async def _tick(self, http: Http, lines: list[str]) -> None:
        limits = self._limits
        shortest = min(limits.header_seconds, limits.body_seconds, limits.idle_seconds)
        while True:
            await asyncio.sleep(min(_TICK_SECONDS, shortest / 4))
            http.tick()
            self._write_access(lines)

    def _write_access(self, lines: list[str]) -> None:
        if self._access_log is None or not lines:
            return
        text = "".join(f"{line}\n" for line in lines)
        lines.clear()
        try:
            self._access_log.write(text)
            self._access_log.flush()
        except (OSError, ValueError):
            log.exception("the access log could not be written")

    # -- models --------------------------------------------------------------------------------

    def _install(self, application: Application, engine: Engine, model: Model) -> None:
        """Put a version in the place of the one before; what that one has begun it will end."""
        old = application.models.get(model.name)
        engine.open(model)
        application.install(model)
        info = self.metrics.model_info
        if old is not None:
            engine.close(old)
            info.remove(old.name, old.version, old.digest)
        present = Counter()
        present.value = 1.0
        info.set(present, model.name, model.version, model.digest)

    async def _follow(self, application: Application, engine: Engine, again: asyncio.Event) -> None:
        """Ask what each alias means, about once a second, and load what is new."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(again.wait(), self._reload_seconds)
            if again.is_set():
                again.clear()
                self._refused.clear()
            for name, ask in self._resolve.items():
                model = await asyncio.to_thread(self._newer, application.models[name], ask)
                if model is not None:
                    self._install(application, engine, model)
                    log.info("%s is now version %s", name, model.version)

    def _newer(self, present: Model, ask: Resolve) -> Model | None:
        """The loaded version that an alias means now, None if that is the present one.

        A version that cannot be served is refused once, not once a second; SIGHUP tries again.
        """
        digest = ""
        try:
            digest, path = ask()
            if digest == present.digest:
                self._refused.pop(present.name, None)
                return None
            if digest == self._refused.get(present.name):
                return None
            return Model.load(present.name, digest, path)
        except Exception as error:
            if self._refused.get(present.name) != digest:
                self._refused[present.name] = digest
                self.metrics.reload_failures.of(present.name).value += 1
                log.error("%s stays version %s: %s", present.name, present.version, error)
            return None


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # a platform that it does not know
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}") from None
    return listener


@contextmanager
def running(server: Server) -> Iterator[str]:
    """Serve on a thread of this process while the block runs; gives the URL.

    Raises:
        Exception: whatever kept the server from starting.
    """
    started = threading.Event()
    failure: list[BaseException] = []

    def serve() -> None:
        try:
            server.run(started.set)
        except BaseException as error:
            failure.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=serve, name="drivetrain-serve", daemon=True)
    thread.start()
    started.wait()
    if failure:
        thread.join()
        raise failure[0]
    try:
        yield server.url
    finally:
        server.stop()
        thread.join()
    if failure:
        raise failure[0]
