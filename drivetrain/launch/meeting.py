"""Where the agents of a job meet: who is there, which generation runs, and when it starts anew.

Each agent keeps a connection and sends a beat every second. Whatever changes (an agent goes, is
silent or comes, a process dies) ends a generation: all agents are told to end their processes, say
when they have, and those that are there then start the next one from the last checkpoint.
"""

import secrets
import select
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from drivetrain.core.job import LOST
from drivetrain.launch.children import LOSS_SECONDS, say
from drivetrain.launch.wire import Greeting, Link

BEAT_SECONDS = 1.0
SILENT_SECONDS = 5.0
"""After so long without a beat an agent, or the meeting, counts as gone."""
SETTLE_SECONDS = 1.0
"""How long agents are waited for that may come at about the same time."""
STEADY_SECONDS = 60.0
"""A generation that lasted so long begins a new row of restarts."""
PATIENT_SECONDS = 30.0
"""What processes are given to end behind a checkpoint, when nothing is wrong with them."""
HURRIED_SECONDS = 3.0
"""And when some of them are lost."""
_TICK_SECONDS = 0.1
_MOST_GREETINGS = 64
_MOST_PROCESSES = 1 << 12


@dataclass(eq=False)
class Member:
    """An agent as the meeting knows it.

    Attributes:
        name: of its machine and process, for people.
        processes: that it starts for a job of several machines.
        host: where others reach its processes.
        port: a free one there, for the next generation.
        heard: when, by the monotonic clock.
        running: its processes have been told to start, and it has not said that they ended.
        status: how those of this generation ended; None while they run.
        stopped: a signal has stopped all of them that run.
    """

    link: Link
    name: str
    processes: int
    host: str
    port: int
    heard: float
    running: bool = False
    status: int | None = None
    stopped: bool = False


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What all agents of a job must agree on, and the meeting goes by.

    Attributes:
        subject: a digest of what is run.
        nodes: of each job in a row, on how many agents it runs at most.
        at_least: agents that a job of several runs on.
        restarts: how often in a row a generation may end because somebody was lost.
        wait_seconds: for agents that are missing.
    """

    subject: str
    nodes: Sequence[int]
    at_least: int
    restarts: int
    wait_seconds: float


@dataclass
class Known:
    """What outlives a meeting: its agents bring it along to the next.

    Attributes:
        job: tells it from others; chosen by the first meeting.
        generation: the last one that was started.
        phase: which of the jobs in a row is at hand.
    """

    job: str = field(default_factory=lambda: secrets.token_hex(8))
    generation: int = 0
    phase: int = 0


class Meeting:
    """Holds one job's agents together, on a thread of one of them.

    Args:
        listener: where agents come.
        token: that they must know.
        terms: of the job.
        known: from before, if there was a meeting.
    """

    def __init__(self, listener: socket.socket, token: bytes, terms: Terms, known: Known) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._token = token
        self._terms = terms
        self._known = known
        self._greetings: dict[Greeting, float] = {}
        self._members: list[Member] = []
        self._chosen: list[Member] = []
        self._left = terms.restarts
        self._gathering = True
        self._since = self._came = self._began = time.monotonic()
        self._failed: float | None = None
        self._patience = HURRIED_SECONDS
        self._over: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drivetrain-meeting", daemon=True)
        self._thread.start()

    def close(self, seconds: float = 0.0) -> None:
        """End; after so many seconds at most, in which agents that were told the end may go."""
        if self._over is not None:
            self._thread.join(seconds)
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._hear()
                self._drop_the_silent()
                if self._over is None:
                    self._decide()
                elif not self._members or time.monotonic() > self._over + SILENT_SECONDS:
                    return
        finally:
            self._listener.close()
            for one in (*self._members, *self._greetings):
                (one.link if isinstance(one, Member) else one.connection).close()

    # -- who is there --------------------------------------------------------------------------

    def _hear(self) -> None:
        members = {member.link.connection: member for member in self._members}
        greetings = {greeting.connection: greeting for greeting in self._greetings}
        sockets = [self._listener, *members, *greetings]
        for ready in select.select(sockets, [], [], _TICK_SECONDS)[0]:
            if ready is self._listener:
                self._accept()
            elif ready in greetings:
                self._greet(greetings[ready])
            elif members[ready] in self._members:  # nobody else's news has sent it away
                self._listen(members[ready])

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has gone again
            return
        try:
            if len(self._greetings) < _MOST_GREETINGS:
                self._greetings[Greeting(connection, self._token)] = time.monotonic()
                return
        except OSError:
            pass
        connection.close()

    def _greet(self, greeting: Greeting) -> None:
        try:
            link = greeting.receive()
            if link is None:
                return
            del self._greetings[greeting]
            host = greeting.connection.getpeername()[0]
            member = Member(link, "", 0, host, 0, time.monotonic())
            self._members.append(member)
            self._listen(member)  # its first message may have come along
        except (ConnectionError, OSError):
            self._greetings.pop(greeting, None)
            greeting.connection.close()

    def _listen(self, member: Member) -> None:
        try:
            messages = member.link.receive()
            for message in messages:
                member.heard = time.monotonic()
                self._heed(member, message)
                if member not in self._members:
                    return
        except (ConnectionError, ValueError, KeyError, TypeError) as error:
            self._lose(member, str(error))

    def _heed(self, member: Member, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "hello" and not member.name:
            self._welcome(member, message)
        elif kind == "beat":
            member.stopped = message["stopped"] is True
            self._tell(member, {"kind": "beat"})
        elif kind in ("ended", "ready") and member.name:
            member.port = _number(message["port"], 1, 65535)
            if message["generation"] != self._known.generation:
                return
            if member.running and member.status is None and message["status"] is not None:
                member.status = _number(message["status"], -64, 255)
            if kind == "ready":
                member.running = False
        elif kind == "leaving":
            if member in self._chosen and not self._gathering and self._over is None:
                self._again(f"{member.name} was asked to end", hurry=False)
        elif kind == "leave":
            self._lose(member, "it was asked to end")
        else:
            raise ConnectionError("a message that no agent sends")

    def _welcome(self, member: Member, message: dict[str, Any]) -> None:
        if message["subject"] != self._terms.subject:
            self._tell(member, {"kind": "refused", "text": "another system, or other options"})
            self._remove(member)
            return
        member.processes = _number(message["processes"], 1, _MOST_PROCESSES)
        member.port = _number(message["port"], 1, 65535)
        member.name = str(message["name"])[:200]
        known = Known(
            job=str(message["job"])[:64],
            generation=_number(message["generation"], 0, 1 << 53),
            phase=_number(message["phase"], 0, len(self._terms.nodes) - 1),
        )
        newer = known.generation > self._known.generation
        if newer:  # it was at a meeting that has gone
            self._known = known
        self._came = time.monotonic()
        self._share(member)
        if self._gathering or self._over is not None:
            return
        # What runs of a generation before that one is not heard any more.
        if newer or len(self._chosen) < self._most():
            self._again(f"{member.name} has come", hurry=False)

    def _tell(self, member: Member, message: dict[str, Any]) -> None:
        try:
            member.link.send(message)
        except ConnectionError as error:
            self._lose(member, str(error))

    def _lose(self, member: Member, why: str) -> None:
        self._remove(member)
        if member.name and self._over is None:
            lost = f"{member.name} has gone ({why})"
            if member in self._chosen and not self._gathering:
                self._restart(lost)
            else:
                say(lost)

    def _remove(self, member: Member) -> None:
        if member in self._members:
            self._members.remove(member)
        member.link.close()

    def _drop_the_silent(self) -> None:
        now = time.monotonic()
        for greeting, began in list(self._greetings.items()):
            if now > began + SILENT_SECONDS:
                del self._greetings[greeting]
                greeting.connection.close()
        for member in list(self._members):
            if now > member.heard + SILENT_SECONDS:
                self._lose(member, f"nothing was heard of it for {SILENT_SECONDS:g} s")

    # -- what is to be done --------------------------------------------------------------------

    def _most(self) -> int:
        return self._terms.nodes[self._known.phase]

    def _decide(self) -> None:
        if self._gathering:
            self._gather()
            return
        statuses = [member.status for member in self._chosen]
        if all(status == 0 for status in statuses):
            self._next_phase()
        elif any(statuses):
            now = time.monotonic()
            if self._failed is None:
                self._failed = now
            late = [member for member in self._chosen if member.status is None]
            # Those that are stopped do not end by themselves, however long they are waited for.
            if all(m.stopped for m in late) or now > self._failed + LOSS_SECONDS:
                self._judge()

    def _gather(self) -> None:
        now = time.monotonic()
        late = [member for member in self._members if member.running]
        if late and now > self._since + self._patience + SILENT_SECONDS:
            for member in late:
                self._lose(member, "its processes did not end")
            return
        failed = [m for m in self._chosen if m.status and m.status > 0 and m.status != LOST]
        if failed:  # it said so when it was told to end them
            self._judge()
            return
        there = [member for member in self._members if member.name and not member.running]
        most = self._most()
        if late or len(there) < min(self._terms.at_least, most):
            missing = f"{self._terms.at_least} agents: found {len(there)}"
            if now > max(self._since, self._came) + self._terms.wait_seconds:
                names = ", ".join(member.name for member in there)
                self._finish(LOST, f"waited {self._terms.wait_seconds:g} s for {missing} ({names})")
        elif len(there) >= most or now > self._came + SETTLE_SECONDS:
            self._start(there[:most])

    def _start(self, chosen: list[Member]) -> None:
        self._known.generation += 1
        self._gathering = False
        self._chosen = chosen
        self._began, self._failed = time.monotonic(), None
        several = self._most() > 1
        first, size = 0, sum(member.processes for member in chosen) if several else 1
        for member in chosen:
            member.running, member.status = True, None
        for member in list(self._members):  # those that only stand by may hold the next meeting
            self._share(member)
        leader, known = chosen[0], self._known
        for member in chosen:
            if self._gathering:  # one of them has gone meanwhile
                return
            self._tell(
                member,
                {
                    "kind": "start",
                    "job": known.job,
                    "generation": known.generation,
                    "phase": known.phase,
                    "first": first,
                    "processes": member.processes if several else 1,
                    "size": size,
                    "host": leader.host,
                    "port": leader.port,
                },
            )
            first += member.processes
        if several:
            say(f"generation {known.generation}: {size} processes of {len(chosen)} agents")

    def _share(self, member: Member) -> None:
        """Let an agent know what a meeting after this one must."""
        self._tell(member, {"kind": "known", **vars(self._known)})

    def _next_phase(self) -> None:
        for member in self._chosen:
            member.running = False
        if self._known.phase + 1 == len(self._terms.nodes):
            self._finish(0, "")
            return
        self._known.phase += 1
        self._gathering, self._since = True, time.monotonic()
        self._left = self._terms.restarts

    def _judge(self) -> None:
        """Of a generation that failed: an error of its own ends the job, a loss starts it anew."""
        statuses = [(member.status, member) for member in self._chosen if member.status]
        own = [(status, member) for status, member in statuses if status > 0 and status != LOST]
        killed = [(status, member) for status, member in statuses if status < 0]
        status, member = [*own, *killed, *statuses][0]
        if own:
            self._finish(status, f"a process of {member.name} ended with status {status}")
        elif killed:
            self._restart(f"a process of {member.name} was ended by signal {-status}")
        elif late := [each.name for each in self._chosen if each.status is None]:
            self._restart(f"processes of {', '.join(late)} stood still when the others had ended")
        else:
            self._restart(f"the processes of {member.name} lost the others")

    def _restart(self, why: str) -> None:
        if time.monotonic() > self._began + STEADY_SECONDS:
            self._left = self._terms.restarts
        if not self._left:
            self._finish(LOST, why)
            return
        self._left -= 1
        self._again(f"{why} ({self._left} restarts left)", hurry=True)

    def _again(self, why: str, *, hurry: bool) -> None:
        """End this generation; those that are there when all have go on."""
        say(f"{why}; the others go on from the last checkpoint")
        self._gathering, self._since = True, time.monotonic()
        self._came = max(self._came, self._since)  # who was lost may come back at once
        self._patience = HURRIED_SECONDS if hurry else PATIENT_SECONDS
        stop = {"generation": self._known.generation, "seconds": self._patience}
        for member in [member for member in self._chosen if member in self._members]:
            self._tell(member, {"kind": "stop", **stop})

    def _finish(self, status: int, text: str) -> None:
        self._over = time.monotonic()
        for member in list(self._members):
            self._tell(member, {"kind": "done", "status": status, "text": text})


def _number(value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{value!r} is no number from {least} to {most}")
    return value
