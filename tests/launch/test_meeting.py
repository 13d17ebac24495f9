"""The meeting, as agents hear it that a test plays."""

import select
import socket
import time
from typing import Any

import pytest

from drivetrain.launch.meeting import Known, Meeting, Terms
from drivetrain.launch.wire import Link, connect


def held(nodes: list[int], restarts: int = 9) -> tuple[Meeting, Any]:
    listener = socket.create_server(("127.0.0.1", 0))
    place = listener.getsockname()
    terms = Terms(subject="s", nodes=nodes, at_least=1, restarts=restarts, wait_seconds=20.0)
    return Meeting(listener, b"", terms, Known()), place


def agent(place: Any, generation: int = 0, phase: int = 0) -> Link:
    link = connect(place, b"", 20.0)
    hello = {"kind": "hello", "name": f"a{generation}", "subject": "s", "processes": 1}
    link.send({**hello, "port": 1, "job": "old", "generation": generation, "phase": phase})
    return link


def until(link: Link, kind: str, others: tuple[Link, ...] = ()) -> dict[str, Any]:
    """The next message of a kind; all send their beats meanwhile, so that none counts as gone."""
    end, beat = time.monotonic() + 20.0, 0.0
    while time.monotonic() < end:
        if time.monotonic() > beat + 1:
            for each in (link, *others):
                each.send({"kind": "beat", "stopped": False})
            beat = time.monotonic()
        if select.select([link.connection], [], [], 0.1)[0]:
            for message in link.receive():
                if message["kind"] == kind:
                    return message
    raise AssertionError(f"no {kind}")


@pytest.mark.slow
def test_one_of_a_later_generation_ends_what_a_new_meeting_began() -> None:
    meeting, place = held([1, 1])
    fresh = agent(place)
    until(fresh, "start")
    old = agent(place, 7, 1)
    assert until(fresh, "stop", (old,))["generation"] == 7
    fresh.send({"kind": "ready", "generation": 7, "status": None, "port": 1})
    message = until(fresh, "start", (old,))
    assert (message["generation"], message["phase"]) == (8, 1)
    for link in (fresh, old):
        link.close()
    meeting.close()


@pytest.mark.slow
def test_one_that_leaves_costs_the_others_no_restart() -> None:
    meeting, place = held([2], restarts=0)
    first = agent(place)
    until(first, "start")
    second = agent(place)
    until(first, "stop", (second,))
    first.send({"kind": "ready", "generation": 1, "status": None, "port": 1})
    begun = until(first, "start", (second,))
    until(second, "start", (first,))
    second.send({"kind": "leaving"})
    stopped = until(first, "stop", (second,))
    assert stopped["seconds"] == 30
    first.send({"kind": "ready", "generation": begun["generation"], "status": 75, "port": 1})
    second.send({"kind": "leave"})
    message = until(first, "start")
    assert (message["generation"], message["size"]) == (begun["generation"] + 1, 1)
    for link in (first, second):
        link.close()
    meeting.close()
