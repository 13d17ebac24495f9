"""One of several machines that run a job together: the same command on each, and they find out."""

import errno
import fcntl
import ipaddress
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from drivetrain.core.errors import wrong
from drivetrain.core.job import LOST, Job
from drivetrain.launch.children import POLL_SECONDS, Children, say
from drivetrain.launch.local import Local, free_port
from drivetrain.launch.meeting import (
    BEAT_SECONDS,
    HURRIED_SECONDS,
    SILENT_SECONDS,
    Known,
    Meeting,
    Terms,
)
from drivetrain.launch.wire import Link, connect

_GRACE_SECONDS = 10.0
_ADDRESS_OF = 0x8915  # SIOCGIFADDR of netdevice(7)


@dataclass(frozen=True, kw_only=True)
class Agents:
    """Runs jobs on this machine together with the agents that the same command starts on others.

    The first agent on the machine that ``address`` names holds the meeting. A job of one node runs
    on the eldest agent alone; one of more runs on as many as there are, up to that number, and
    whoever comes later or goes is reckoned with: all start anew from the last checkpoint. An agent
    that was stopped and wakes up finds its place taken, and comes as a new one.

    What the processes write must lie where all machines see it.

    Attributes:
        address: ``host:port`` of the meeting; off loopback it needs a token.
        token: what agents prove that they know; empty on loopback only.
        at_least: agents that a job of several nodes needs.
        restarts: how often in a row a job is started anew because somebody was lost.
        wait_seconds: how long agents that are missing, or the meeting, are waited for.
    """

    address: str
    token: bytes = field(default=b"", repr=False)
    at_least: int = 1
    restarts: int = 3
    wait_seconds: float = 600.0

    def __post_init__(self) -> None:
        host, port = self.place
        if not host or not 0 < port < 65536:
            raise wrong("[launcher] address", self.address, "host:port")
        if not self.token and not _loopback(host):
            raise wrong("[launcher] token_file", "", f"a file, where agents meet at {host}")
        if self.at_least < 1:
            raise wrong("[launcher] at_least", self.at_least, "1 or more")

    @property
    def place(self) -> tuple[str, int]:
        """Host and port of the meeting; port 0 where none is said."""
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port) if port.isascii() and port.isdigit() else 0

    def render(self, job: Job) -> str:
        """The processes of each machine, whose ranks the meeting gives, as lines for a shell."""
        nodes = job.resources.nodes
        one = Local().render(_on_one(job))
        return one if nodes == 1 else f"# on each of up to {nodes} machines\n{one}"

    def start(self, job: Job) -> int:
        """As :meth:`run`, of one job."""
        return self.run((job,), job.name)

    def run(self, jobs: Sequence[Job], subject: str) -> int:
        """Run jobs one after another, to the end of the last; 0, or the status that failed.

        SIGINT and SIGTERM let this agent leave, behind a checkpoint; the others go on.

        Args:
            jobs: the same for all agents.
            subject: names what is run; an agent that brings another one is refused.

        Raises:
            ConnectionError: the meeting was not found for ``wait_seconds``.
            ValueError: the others run something else.
        """
        nodes = [job.resources.nodes for job in jobs]
        terms = Terms(
            subject=subject,
            nodes=nodes,
            at_least=self.at_least,
            restarts=self.restarts,
            wait_seconds=self.wait_seconds,
        )
        agent = _Agent(self, jobs, terms)
        before = {n: signal.signal(n, agent.leave) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            return agent.run()
        finally:
            agent.close()
            for number, action in before.items():
                signal.signal(number, action)


class _Agent:
    """This machine's part, until the jobs are done."""

    def __init__(self, options: Agents, jobs: Sequence[Job], terms: Terms) -> None:
        self._options = options
        self._jobs = jobs
        self._terms = terms
        self._known = Known()
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._meeting: Meeting | None = None
        self._link: Link | None = None
        self._children: Children | None = None
        self._status: int | None = None
        self._leaving: int | None = None
        self._kill_at: float | None = None
        self._stopped = 0  # the generation that is being ended
        self._heard = self._beaten = 0.0

    def leave(self, number: int, frame: object) -> None:
        """Go, when what runs has ended."""
        self._leaving = number
        # Who was asked already writes a checkpoint, and a second SIGTERM would end it at once.
        if self._children is not None and self._kill_at is None:
            self._children.send(signal.SIGTERM)
            self._kill_at = time.monotonic() + _GRACE_SECONDS

    def run(self) -> int:
        last = time.monotonic() + self._options.wait_seconds
        while True:
            link = self._find(last)
            if link is None:
                return 128 + (self._leaving or 0)
            self._link, self._heard = link, time.monotonic()
            try:
                status = self._attend(link)
                if status is not None:
                    return status
            except (ConnectionError, KeyError, TypeError) as error:
                say(f"the meeting at {self._options.address} is lost: {error}")
            finally:
                self._part(link)
            last = time.monotonic() + self._options.wait_seconds

    def close(self) -> None:
        """Leave nothing behind."""
        if self._children is not None:
            self._children.end()
        if self._meeting is not None:
            self._meeting.close(SILENT_SECONDS)

    def _part(self, link: Link) -> None:
        """Without a meeting nothing runs: the others go on without these processes."""
        link.close()
        if self._children is not None:
            self._children.end(HURRIED_SECONDS)
            self._children = None

    # -- finding the meeting -------------------------------------------------------------------

    def _find(self, last: float) -> Link | None:
        """A link to the meeting, which this agent begins where it can and there is none."""
        where, said = self._options.place, ""
        while self._leaving is None:
            try:
                return connect(where, self._options.token, SILENT_SECONDS)
            except ConnectionRefusedError as error:
                why = str(error)
                if self._begin(where):
                    continue
            except OSError as error:
                why = str(error) or type(error).__name__
            if why != said:
                say(f"waits for a meeting of agents at {self._options.address}: {why}")
                said = why
            if time.monotonic() > last:
                raise ConnectionError(
                    f"no meeting of agents at {self._options.address} for "
                    f"{self._options.wait_seconds:g} s ({why})."
                )
            time.sleep(4 * POLL_SECONDS)
        return None

    def _begin(self, where: tuple[str, int]) -> bool:
        """Hold the meeting here; whether that can be."""
        try:
            family = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server(where, family=family, backlog=64)
        except OSError as error:  # another agent was faster, or the address is another machine's
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
            return False
        if self._meeting is not None:
            self._meeting.close()
        self._meeting = Meeting(listener, self._options.token, self._terms, replace(self._known))
        return True

    # -- at the meeting ------------------------------------------------------------------------

    def _attend(self, link: Link) -> int | None:
        """Do as the meeting says; the status of the jobs, when they are done."""
        known, told = self._known, False
        link.send(
            {
                "kind": "hello",
                "name": self._name,
                "subject": self._terms.subject,
                "processes": self._jobs_processes(),
                "port": free_port(),
                "job": known.job,
                "generation": known.generation,
                "phase": known.phase,
            }
        )
        while True:
            if select.select([link.connection], [], [], 2 * POLL_SECONDS)[0]:
                for message in link.receive():
                    self._heard = time.monotonic()
                    status = self._heed(message)
                    if status is not None:
                        return status
            now = time.monotonic()
            if now > self._heard + SILENT_SECONDS:
                raise ConnectionError(f"nothing was heard of it for {SILENT_SECONDS:g} s")
            if now > self._beaten + BEAT_SECONDS:
                self._beaten = now
                stopped = self._children is not None and self._children.stopped
                link.send({"kind": "beat", "stopped": stopped})
            if self._leaving is not None and not told:
                told = True
                link.send({"kind": "leaving"})
            self._look_after(link, now)
            if self._leaving is not None and self._children is None:
                link.send({"kind": "leave"})
                return LOST if self._status in (None, 0, LOST) else 128 + self._leaving

    def _jobs_processes(self) -> int:
        return max(job.resources.processes for job in self._jobs)

    def _heed(self, message: dict[str, Any]) -> int | None:
        kind = message["kind"]
        if kind == "known":
            self._known = self._read(message)
        elif kind == "start" and self._leaving is None:
            self._start(message)
        elif kind == "stop":
            self._stopped = int(message["generation"])
            if self._leaving is None:  # or else they have been asked
                self._kill_at = time.monotonic() + min(float(message["seconds"]), 60.0)
                if self._children is not None:
                    self._children.send(signal.SIGTERM)
        elif kind == "done":
            if message["text"]:
                say(message["text"])
            return int(message["status"])
        elif kind == "refused":
            raise wrong("the system that this agent runs", self._terms.subject[:12], "the others'")
        return None

    def _read(self, message: dict[str, Any]) -> Known:
        phase = int(message["phase"])
        if not 0 <= phase < len(self._jobs):
            raise ConnectionError(f"the meeting speaks of job {phase} of {len(self._jobs)}")
        return Known(str(message["job"]), int(message["generation"]), phase)

    def _start(self, message: dict[str, Any]) -> None:
        known = self._known = self._read(message)
        self._status, self._kill_at = None, None
        job = self._jobs[known.phase]
        environments = [
            {
                **job.environment,
                "RANK": str(int(message["first"]) + local),
                "LOCAL_RANK": str(local),
                "WORLD_SIZE": str(int(message["size"])),
                "MASTER_ADDR": str(message["host"]),
                "MASTER_PORT": str(int(message["port"])),
                "DRIVETRAIN_JOB": known.job,
                "DRIVETRAIN_GENERATION": str(known.generation),
                **({"OMP_NUM_THREADS": str(job.resources.cpus)} if job.resources.cpus else {}),
                **self._interface(),
            }
            for local in range(int(message["processes"]))
        ]
        if self._children is not None:
            self._children.kill()
        self._children = Children(job.command, environments, HURRIED_SECONDS).start()
        if self._leaving is not None:  # asked to while they were started
            self._kill_at = None
            self.leave(self._leaving, None)

    def _interface(self) -> dict[str, str]:
        """Where gloo shall listen: a machine's own name often means its loopback address."""
        assert self._link is not None
        own = self._link.connection.getsockname()[0]
        name = "" if _loopback(own) else interface_of(own)
        return {} if not name else {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}

    def _look_after(self, link: Link, now: float) -> None:
        children = self._children
        ending = self._kill_at is not None
        if children is not None and ending:
            if children.running and now < (self._kill_at or 0.0):
                return
            children.kill()
            self._status = children.fault()[1]
            self._children = None
        elif children is not None:
            outcome = children.outcome()
            if outcome is None:
                return
            if children.late and outcome[1] == LOST:
                late = ", ".join(str(children.processes[place].pid) for place in children.late)
                say(f"process {late} stood still when the others had ended")
            self._status, self._children = outcome[1], None
            self._say(link, "ended", self._known.generation)
        if ending and self._leaving is None:
            self._kill_at = None
            self._say(link, "ready", self._stopped)

    def _say(self, link: Link, kind: str, generation: int) -> None:
        found = {"generation": generation, "status": self._status, "port": free_port()}
        link.send({"kind": kind, **found})


def _on_one(job: Job) -> Job:
    return replace(job, resources=replace(job.resources, nodes=1))


def _loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def interface_of(address: str) -> str:
    """The network interface that has an IPv4 address; empty if none is found (off Linux)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                asked = struct.pack("256s", name.encode()[:15])
                held = fcntl.ioctl(probe.fileno(), _ADDRESS_OF, asked)[20:24]
                if socket.inet_ntoa(held) == address:
                    return name
    return ""
