"""The serving process: its socket, its models as aliases move, its signals and its end."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from drivetrain.core.errors import wrong
from drivetrain.core.placement import AUTO, CPU, checked
from drivetrain.serve import native
from drivetrain.serve.application import Application
from drivetrain.serve.event_loop import import_loop, new_loop
from drivetrain.serve.execution.batching import Batching
from drivetrain.serve.execution.engine import Engine
from drivetrain.serve.execution.loading import Loader, Verify
from drivetrain.serve.execution.models import Resolve, checked_name, pinned
from drivetrain.serve.execution.weights import Weights, shared_weights
from drivetrain.serve.protocols.calls import Service
from drivetrain.serve.protocols.identity import RequestIds
from drivetrain.serve.state.states import Keeping, States
from drivetrain.serve.telemetry.access import AccessLog
from drivetrain.serve.telemetry.feedback import Feedback
from drivetrain.serve.telemetry.metrics import Metrics
from drivetrain.serve.telemetry.retention import Retention
from drivetrain.serve.telemetry.traces import Traces, Tracing
from drivetrain.serve.transport.descriptors import room_for
from drivetrain.serve.transport.http import Http, HttpLimits
from drivetrain.serve.transport.listen import bind, bind_shared, is_loopback
from drivetrain.serve.transport.tls import Tls
from drivetrain.serve.versions.aliases import Aliases
from drivetrain.serve.workers.ahead import Ahead
from drivetrain.serve.workers.counts import Counts
from drivetrain.serve.workers.doors import Doors
from drivetrain.serve.workers.repository import Repository
from drivetrain.serve.workers.seat import FAILED, Seat, seats_of
from drivetrain.serve.workers.shared import Shared
from drivetrain.serve.workers.shared_memory import SharedMemory
from drivetrain.serve.workers.supervisor import LOOK, Supervisor

log = logging.getLogger("drivetrain.serve")

_SWITCH_SECONDS = 0.0005
_YOUNG_OBJECTS = 20_000
"""Until the cyclic garbage collector looks; what is answered goes without it."""
_TICK_SECONDS = 0.25
_END_SECONDS = 2.0
"""Beyond its grace, until a process that does not end is ended."""
_LEAST_HANG_SECONDS = 2.0


class Server:
    """Serves the bundles that aliases mean, and follows the aliases while it runs.

    Args:
        models: for each alias, a callable that gives the bundles which it means now, or the
            directory or the packed file of a bundle that stays. The callable is asked about once
            a second.
        verify: given every bundle before it is loaded; raises ``ValueError`` if nobody who is
            trusted has signed it. It is refused then, and what is served stays.
        host: the address to listen at.
        port: the port; 0 takes a free one.
        management_port: a second port, which serves all that the first does and lets clients load
            and unload the aliases and register shared memory; 0 takes a free one, None opens none.
        token: what clients bring as ``Authorization: Bearer``; must be set off loopback, unless
            ``tls`` asks clients for certificates.
        tls: what is served over it; None serves in the clear, the token included.
        feedback: a directory for events (see
            :class:`drivetrain.serve.telemetry.feedback.Feedback`).
        retention: how much of them is kept there.
        access_log: gets one line of JSON for each answer; a path is appended to (see
            :class:`drivetrain.serve.telemetry.access.AccessLog`).
        tracing: where the traces of requests go; None makes none.
        state: where the observations are kept that windows are read off; None keeps them in
            memory.
        limits: what one client may take.
        batching: how requests share runs.
        reload_seconds: how often aliases are asked.
        drain_seconds: how long a server that was told to end still takes connections, for load
            balancers that need to see its readiness go first.
        grace_seconds: after that, how long it goes on answering what it has accepted.
        workers: processes that share the port, 0 for one a core. More than one need Linux, whose
            kernel spreads connections over them; limits and queues are each process's own.
        placement: where graphs run, as :mod:`drivetrain.core.placement` names it; ``auto``
            measures what is installed and picks the fastest that gives the same.
        parity: how far its answers may be from the plain CPU's; 0 for its own limit.
        hang_seconds: of several workers one whose event loop does not turn for so long, or whose
            run of a graph takes longer, is killed and replaced.
        load_seconds: what loading may take. Of several workers one that is not ready so long after
            its start is killed and replaced; a new version that takes longer is told of.
        ahead: makes what several workers share, which are told where by it; whoever began it ends
            it. None lets the first worker make it.

    Attributes:
        names: what clients may ask for.

    Raises:
        ValueError: an alias is no allowed name, the address is not loopback and no token is set,
            or there cannot be so many workers.
    """

    def __init__(
        self,
        models: Mapping[str, Resolve | Path],
        *,
        verify: Verify | None = None,
        host: str = "127.0.0.1",
        port: int = 8080,
        management_port: int | None = None,
        token: str | None = None,
        tls: Tls | None = None,
        feedback: Path | None = None,
        retention: Retention | None = None,
        access_log: TextIO | Path | None = None,
        tracing: Tracing | None = None,
        state: Keeping | None = None,
        limits: HttpLimits | None = None,
        batching: Batching | None = None,
        reload_seconds: float = 1.0,
        drain_seconds: float = 0.0,
        grace_seconds: float = 20.0,
        workers: int = 1,
        placement: str = CPU,
        parity: float = 0.0,
        hang_seconds: float = 30.0,
        load_seconds: float = 600.0,
        ahead: Ahead | None = None,
    ) -> None:
        if not models:
            raise ValueError("models: found none, allowed: one or more to serve.")
        self._resolve = {
            checked_name(name): pinned(given) if isinstance(given, Path) else given
            for name, given in models.items()
        }
        self.names = tuple(self._resolve)
        if not is_loopback(host) and not token and not (tls is not None and tls.identifies):
            raise wrong(
                *("host", host),
                "a loopback address, or any with a token or a certificate that clients must bring",
            )
        self.host = host
        self.port = port
        self.management_port = management_port
        self.metrics = Metrics()
        self._verify = verify
        self._token = token or None
        self._tls = tls
        self._feedback = feedback
        self._retention = retention or Retention()
        self._access_log = access_log
        self._tracing = tracing
        self._limits = limits or HttpLimits()
        self._batching = batching or Batching.of(seats_of(workers))
        self._reload_seconds = reload_seconds
        self._drain_seconds = drain_seconds
        self._grace_seconds = grace_seconds
        self._last: threading.Timer | None = None
        self._workers = seats_of(workers)
        kept = (self._workers, self.metrics, self._batching.most_rows, self._batching.runs)
        self._states = States(state or Keeping(), *kept)
        if hang_seconds < _LEAST_HANG_SECONDS:
            raise wrong("hang_seconds", hang_seconds, f"{_LEAST_HANG_SECONDS:g} or more")
        self._hang_seconds, self._load_seconds = hang_seconds, load_seconds
        self._placement, self._parity = checked(placement), parity
        self._shared: Shared | None = None
        self._ahead = ahead
        self._weights: Weights | None = None if ahead is None else ahead.weights
        self._seat: Seat | None = None
        self._counts: Counts | None = None
        self._supervisor: Supervisor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Where it listens; the port is known once it runs."""
        return self._url(self.port)

    @property
    def management_url(self) -> str | None:
        """Where it is managed; None if it is not, and the port is known once it runs."""
        return None if self.management_port is None else self._url(self.management_port)

    def _url(self, port: int) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self._tls is None else 'https'}://{host}:{port}"

    def run(self, started: Callable[[], object] = lambda: None) -> int:
        """Serve until :meth:`stop`, SIGTERM or SIGINT, then answer what was accepted and end.

        SIGHUP asks the aliases at once. Signals are heeded on the main thread only, and several
        workers can be started from there only.

        Args:
            started: called when requests are taken; by every worker, if there are several.

        Returns:
            0, or 1 if the grace ended before all requests were answered.

        Raises:
            OSError: the address is taken, or a bundle cannot be read.
            ValueError: a bundle is damaged.
        """
        log.info("requests are read by the %s path", native.path)
        self._limits = room_for(self._limits)
        if self._workers > 1:
            return self._supervise(started)
        if threading.current_thread() is threading.main_thread():
            seconds = self._drain_seconds + self._grace_seconds + _END_SECONDS
            self._last = threading.Timer(seconds, os._exit, (FAILED,))  # a run may never return
            self._last.daemon = True
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                return runner.run(self._serve(started))
        finally:
            if self._last is not None:
                self._last.cancel()

    def _supervise(self, started: Callable[[], object]) -> int:
        if threading.current_thread() is not threading.main_thread():
            raise wrong("workers", self._workers, "1 on a thread that is not the main one")
        import_loop()  # before the fork, so that its pages are shared
        listeners = bind_shared(self.host, self.port, self._workers)
        self.port = listeners[0].getsockname()[1]
        shared = self._share(self._workers)
        if self._access_log is not None and not isinstance(self._access_log, Path):
            self._access_log.flush()  # or every fork would write again what it holds
        end_seconds = self._drain_seconds + self._grace_seconds + _END_SECONDS
        self._supervisor = Supervisor(
            *(self._work, listeners, end_seconds, self._hang_seconds, self._load_seconds),
            ended=shared.left,
        )
        ahead = self._ahead
        if ahead is None:
            self._weights = shared_weights(needed=self._placement == AUTO)

        def begun() -> None:
            if ahead is not None:
                ahead.end()
            started()

        try:
            return self._supervisor.run(begun)
        finally:
            shared.close()
            if self._weights is not None:
                self._weights.close()

    def _share(self, seats: int) -> Shared:
        """What all processes share; the management port is bound before anything is loaded."""
        shared = self._shared = Shared(self.host, self.management_port, seats)
        self.management_port = shared.port
        return shared

    def _work(self, seat: Seat) -> int:
        """Serve in the forked process of a seat."""
        self._seat, self._supervisor = seat, None
        end_seconds = self._drain_seconds + self._grace_seconds + _END_SECONDS
        supervisor = os.getppid()
        seat.follow(self.stop, end_seconds)
        self._renew()  # the supervisor, which serves nothing, has what it began with
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                return runner.run(self._serve(seat.ready))
        finally:
            if self._weights is not None and os.getppid() != supervisor:
                self._weights.close()  # for it cannot any more

    def stop(self) -> None:
        """End as on SIGTERM; from any thread."""
        if self._supervisor is not None:
            self._supervisor.stop()
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                loop.call_soon_threadsafe(stopping.set)

    # -- life ----------------------------------------------------------------------------------

    async def _serve(self, started: Callable[[], object]) -> int:
        loop = self._loop = asyncio.get_running_loop()
        stopping = self._stopping = asyncio.Event()
        again = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._states.close)
            # Bound before anything is loaded, for a taken port is better known at once; it
            # listens only when there is something to serve.
            seat, shared = self._seat, self._shared
            listener = stack.enter_context(seat.listener if seat else bind(self.host, self.port))
            self.port = listener.getsockname()[1]
            if seat is None or shared is None:
                shared = self._share(1)
            stack.callback(shared.close)
            number = 0 if seat is None else seat.number
            memory = SharedMemory(shared.memory, number)
            if seat is not None:
                counts = self._counts = Counts(seat, self.metrics)
                stack.callback(counts.publish)
            engine = Engine(self._batching, self.metrics, loop)
            application = self._application(engine, memory, stack)
            stack.callback(engine.shut_down)
            stack.callback(application.shut_down)
            loader = Loader(self._weights, self._placement, self._parity, self._verify)
            told = (self.metrics, loader, seat, self._load_seconds)
            aliases = Aliases(self._resolve, application, engine, *told, self._states)
            repository = Repository(aliases, shared.repository, number)
            application.manage(repository, memory)
            aliases.begin(repository.unloaded)
            for part in (memory, repository):
                await part.begin()
                stack.callback(part.end)
            entrance = application.entrance
            told = (entrance.refused, application.streams, entrance.judge, entrance.gates)
            http = Http(application, self._limits, *told)
            stack.callback(http.abort)
            doors = Doors(http, {} if self._tls is None else self._tls.options, seat)
            await doors.open(listener)
            if shared.listener is not None:
                await doors.open(shared.listener, managed=True)
            self._heed_signals(loop, stopping, http)
            self._heed_wishes(loop, again, aliases)
            # What was made until now stays: a full collection need not walk it each time.
            gc.collect()
            gc.freeze()
            stack.callback(gc.unfreeze)
            # A batch of requests in hand is thousands of young objects, none of them garbage.
            stack.callback(gc.set_threshold, *gc.get_threshold())
            gc.set_threshold(_YOUNG_OBJECTS)
            # A thread that computes in Python holds the loop up for this long, 5 ms by default.
            stack.callback(sys.setswitchinterval, sys.getswitchinterval())
            sys.setswitchinterval(_SWITCH_SECONDS)
            for work in (
                self._tick(http, engine),
                aliases.follow(again, self._reload_seconds),
                application.prepare(),
            ):
                stack.callback(loop.create_task(work).cancel)
            self._set_ready(application, True)
            started()
            await stopping.wait()
            if self._last is not None:
                self._last.start()
            self._set_ready(application, False)
            await asyncio.sleep(self._drain_seconds)
            left = await doors.drain(self._grace_seconds)
        if left:
            log.error("%d requests had no answer when the grace of the end was over", left)
        return 1 if left else 0

    def _application(
        self, engine: Engine, memory: SharedMemory, stack: contextlib.AsyncExitStack
    ) -> Application:
        """The application; what must be closed goes on the stack."""
        feedback = access = traces = None
        if self._access_log is not None:
            access = AccessLog(self._access_log, self.metrics.access_dropped.of())
            stack.callback(access.close)
        if self._tracing is not None:
            counted = (self.metrics.trace_spans.of(), self.metrics.trace_dropped.of())
            traces = Traces(self._tracing, *counted)
            stack.callback(traces.close)
        if self._feedback is not None:
            feedback = Feedback(self._feedback, self.metrics, retention=self._retention)
            stack.callback(feedback.close)
        service = Service(
            engine=engine,
            metrics=self.metrics,
            request_ids=RequestIds(),
            recorder=feedback,
            access=access,
            traces=traces,
            shared_memory=memory,
            states=self._states,
            tensor_bytes=self._limits.body_bytes,
        )
        return Application(service, self._token)

    def _set_ready(self, application: Application, ready: bool) -> None:
        application.ready = ready
        self.metrics.ready.of().value = float(ready)

    def _heed_signals(
        self, loop: asyncio.AbstractEventLoop, stopping: asyncio.Event, http: Http
    ) -> None:
        if threading.current_thread() is not threading.main_thread():
            return

        def end() -> None:
            if stopping.is_set():  # a second signal: whoever sends it does not want to wait
                http.abort()
            stopping.set()

        if self._seat is None:
            loop.add_signal_handler(signal.SIGTERM, end)
            loop.add_signal_handler(signal.SIGINT, end)
        else:
            loop.add_signal_handler(signal.SIGTERM, stopping.set)
            loop.add_signal_handler(signal.SIGQUIT, lambda: (stopping.set(), http.abort()))

    def _heed_wishes(
        self, loop: asyncio.AbstractEventLoop, again: asyncio.Event, aliases: Aliases
    ) -> None:
        """An operator's SIGHUP tries everything anew. That another worker has found something new
        is only a reason to look: a canary that was stopped stays so."""
        if threading.current_thread() is not threading.main_thread():
            return

        def anew() -> None:
            aliases.forgive()
            again.set()
            self._renew(always=True)

        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, anew)
        if self._seat is not None:
            loop.add_signal_handler(LOOK, again.set)

    async def _tick(self, http: Http, engine: Engine) -> None:
        limits = self._limits
        shortest = min(limits.header_seconds, limits.body_seconds, limits.idle_seconds)
        while True:
            await asyncio.sleep(min(_TICK_SECONDS, shortest / 4))
            http.tick()
            if self._counts is not None:
                self._counts.publish()
            self._renew()
            if self._seat is not None:
                self._seat.board.beat(self._seat.number)
                stuck = engine.stuck(self._hang_seconds)
                if stuck:
                    why = f"a run of {stuck} has taken more than {self._hang_seconds:g} s"
                    self._seat.hang(why)

    def _renew(self, *, always: bool = False) -> None:
        if self._tls is not None:
            self._tls.renew(always=always)


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
