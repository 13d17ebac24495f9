"""Agents on one machine, as they would be on several: who comes, goes or stands still."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drivetrain.core.job import Job, Resources
from drivetrain.launch.agents import Agents, interface_of
from drivetrain.launch.local import free_port
from drivetrain.launch.wire import connect

AGENT = Path(__file__).with_name("agent.py")
SECONDS = 60
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts an agent; what it says is in ``said``. None is left."""
    address = f"127.0.0.1:{free_port()}"
    agents: list[subprocess.Popen[bytes]] = []

    def another(**options: Any) -> "subprocess.Popen[bytes]":
        given = json.dumps({"address": address, "restarts": 9, **options})
        with (tmp_path / "said").open("ab") as said:
            command = (sys.executable, "-W", "error", str(AGENT), str(tmp_path), given)
            agents.append(subprocess.Popen(command, stderr=said))
        return agents[-1]

    yield another
    for agent in agents:
        if agent.poll() is None:
            agent.send_signal(signal.SIGCONT)
            agent.kill()
        agent.wait()


def generation(folder: Path, size: int, after: int = 0, job: str = "train") -> dict[int, list[int]]:
    """Wait until a generation of ``size`` processes is there, later than ``after``.

    Its number lies at -1, and at each rank the process's id, its agent's and the port.
    """
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        found: dict[int, dict[int, list[int]]] = {}
        for path in folder.glob(f"{job}-*of{size}"):
            number, rank = map(int, re.findall(r"\d+", path.name)[:2])
            found.setdefault(number, {})[rank] = [int(each) for each in path.read_text().split()]
        whole = [n for n, ranks in found.items() if n > after and len(ranks) == size]
        if whole:
            return {-1: [max(whole)], **found[max(whole)]}
        time.sleep(0.05)
    raise AssertionError((folder / "said").read_text())


def finish(folder: Path, job: str = "train", status: int = 0) -> None:
    (folder / f".finish-{job}").write_text(str(status))
    (folder / f".finish-{job}").rename(folder / f"finish-{job}")


def ended(*agents: "subprocess.Popen[bytes]") -> list[int]:
    return [agent.wait(SECONDS) for agent in agents]


@pytest.mark.slow
def test_agents_agree_on_ranks_and_one_that_comes_later_takes_part(
    start: Start, tmp_path: Path
) -> None:
    jobs = {"train": [3, 2]}
    first = start(jobs=jobs, at_least=2)
    second = start(jobs=jobs, at_least=2)
    places = generation(tmp_path, 4)
    (number,) = places.pop(-1)
    assert len({process for process, _, _ in places.values()}) == 4
    assert {agent for _, agent, _ in places.values()} == {first.pid, second.pid}
    assert len({port for _, _, port in places.values()}) == 1
    assert places[0][1] == places[1][1]  # those of one machine lie side by side
    third = start(jobs=jobs, at_least=2)
    after = generation(tmp_path, 6, after=number)
    assert after[0][1] == places[0][1]  # the eldest still leads
    finish(tmp_path)
    assert ended(first, second, third) == [0, 0, 0]


@pytest.mark.slow
def test_when_an_agent_is_killed_the_others_go_on_and_it_may_come_back(
    start: Start, tmp_path: Path
) -> None:
    agents = {agent.pid: agent for agent in (start(), start(), start())}
    places = generation(tmp_path, 3)
    for rank in (2, 0):  # any, and the eldest, which holds the meeting
        victim = agents.pop(places[rank][1])
        victim.kill()
        left = generation(tmp_path, 2, after=places[-1][0])
        assert victim.pid not in {left[0][1], left[1][1]}
        again = start()
        agents[again.pid] = again
        places = generation(tmp_path, 3, after=left[-1][0])
        assert {places[n][1] for n in range(3)} == agents.keys()
    finish(tmp_path)
    assert ended(*agents.values()) == [0, 0, 0]


@pytest.mark.slow
def test_an_agent_that_stood_still_finds_its_place_taken_and_comes_as_a_new_one(
    start: Start, tmp_path: Path
) -> None:
    first = start(jobs={"train": [2, 1]})
    places = generation(tmp_path, 1)
    second = start(jobs={"train": [2, 1]})
    places = generation(tmp_path, 2, after=places[-1][0])
    second.send_signal(signal.SIGSTOP)
    alone = generation(tmp_path, 1, after=places[-1][0])
    assert alone[0][1] == first.pid
    second.send_signal(signal.SIGCONT)
    both = generation(tmp_path, 2, after=alone[-1][0])
    assert both[-1][0] > alone[-1][0] > places[-1][0]
    with pytest.raises(ProcessLookupError):  # what it ran in the old generation has ended
        os.kill(places[1][0], 0)
    finish(tmp_path)
    assert ended(first, second) == [0, 0]


@pytest.mark.slow
def test_whoever_is_killed_at_random_nothing_hangs(start: Start, tmp_path: Path) -> None:
    options = {"jobs": {"train": [2, 1]}, "at_least": 2, "restarts": 99}
    agents = {agent.pid: agent for agent in (start(**options) for _ in range(3))}  # one stands by
    generator, after = random.Random(1), 0
    for _ in range(8):
        places = generation(tmp_path, 2, after)
        process, agent, _ = places[generator.randrange(2)]
        victims = generator.choice([[process], [agent], [agent, process]])
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):  # it ended with its agent
                os.kill(victim, signal.SIGKILL)
        if agent in victims:
            agents.pop(agent).wait(SECONDS)
            another = start(**options)
            agents[another.pid] = another
        after = places[-1][0]
    places = generation(tmp_path, 2, after)
    finish(tmp_path)  # the third may not have come yet, and would wait for others
    assert ended(*(agents[places[rank][1]] for rank in (0, 1))) == [0, 0]


@pytest.mark.slow
def test_a_killed_process_starts_all_anew_and_an_error_of_its_own_ends_all(
    start: Start, tmp_path: Path
) -> None:
    first, second = start(at_least=2), start(at_least=2)
    places = generation(tmp_path, 2)
    os.kill(places[1][0], signal.SIGKILL)
    generation(tmp_path, 2, after=places[-1][0])
    finish(tmp_path, status=7)
    assert ended(first, second) == [7, 7]
    said = (tmp_path / "said").read_text()
    assert "was ended by signal 9 (8 restarts left)" in said
    assert "ended with status 7" in said


@pytest.mark.slow
def test_one_that_a_signal_has_stopped_is_named_and_not_waited_for(
    start: Start, tmp_path: Path
) -> None:
    first, second = (start(at_least=2, loss_seconds=1000.0) for _ in range(2))
    places = generation(tmp_path, 2)
    os.kill(places[1][0], signal.SIGSTOP)
    os.kill(places[0][0], signal.SIGTERM)  # it ends as one that waited for the other in vain
    generation(tmp_path, 2, after=places[-1][0])
    with pytest.raises(ProcessLookupError):
        os.kill(places[1][0], 0)
    finish(tmp_path)
    assert ended(first, second) == [0, 0]
    said = (tmp_path / "said").read_text()
    assert f":{places[1][1]} stood still when the others had ended" in said


@pytest.mark.slow
def test_jobs_follow_one_another_and_those_of_one_node_run_on_one_agent(
    start: Start, tmp_path: Path
) -> None:
    jobs = {"before": [1, 1], "train": [2, 1], "after": [1, 1]}
    first, second = start(jobs=jobs), start(jobs=jobs)
    before = generation(tmp_path, 1, job="before")
    agents = {first.pid: first, second.pid: second}
    agents.pop(before[0][1]).kill()  # the other one does it
    (left,) = agents.values()
    end = time.monotonic() + SECONDS  # it may not have come yet, and then counts from the beginning
    while generation(tmp_path, 1, job="before")[0][1] != left.pid:
        assert time.monotonic() < end
        time.sleep(0.05)
    third = start(jobs=jobs)
    finish(tmp_path, "before")
    generation(tmp_path, 2)
    finish(tmp_path, "train")
    generation(tmp_path, 1, job="after")
    assert len(list(tmp_path.glob("after-*of1"))) == 1
    finish(tmp_path, "after", status=1)  # such as a bound that is broken
    assert ended(left, third) == [1, 1]


@pytest.mark.slow
def test_one_that_is_asked_to_leave_does_and_the_others_go_on(start: Start, tmp_path: Path) -> None:
    first = start()
    generation(tmp_path, 1)
    second = start()
    places = generation(tmp_path, 2)
    second.send_signal(signal.SIGTERM)
    alone = generation(tmp_path, 1, after=places[-1][0])
    assert alone[0][1] == first.pid
    assert ended(second) == [75]
    finish(tmp_path)
    assert ended(first) == [0]


@pytest.mark.slow
def test_who_is_missing_or_runs_something_else_is_named(start: Start, tmp_path: Path) -> None:
    port = free_port()
    place = {"address": f"127.0.0.1:{port}", "token": "right"}
    first = start(at_least=2, wait_seconds=10.0, **place)
    end = time.monotonic() + SECONDS
    while True:  # the meeting is the first's
        try:
            connect(("127.0.0.1", port), b"right", 5.0).close()
            break
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
    stranger = start(subject="other", wait_seconds=4.0, **place)
    assert ended(stranger) == [2]
    guesser = start(wait_seconds=0.5, **{**place, "token": "wrong"})
    assert ended(guesser) == [2]
    assert ended(first) == [75]
    assert time.monotonic() < end
    said = (tmp_path / "said").read_text()
    assert "is the token the same?" in said
    assert "found 'other', allowed: the others'" in said
    assert re.search(r"waited 10 s for 2 agents: found 1 \(.*:\d+\)", said)
    assert "right" not in said.replace("copyright", "")


def test_off_loopback_agents_need_a_token() -> None:
    with pytest.raises(ValueError, match=r"\[launcher\] token_file: found '', allowed: a file"):
        Agents(address="10.0.0.1:29400")
    assert Agents(address="10.0.0.1:29400", token=b"secret").place == ("10.0.0.1", 29400)
    assert "secret" not in repr(Agents(address="10.0.0.1:29400", token=b"secret"))


@pytest.mark.parametrize("address", ["", "29400", ":29400", "host:", "host:0", "host:x"])
def test_an_address_without_host_or_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"\[launcher\] address: .* allowed: host:port"):
        Agents(address=address, token=b"secret")


def test_rendering_shows_what_each_machine_runs() -> None:
    job = Job(name="j", command=("train",), resources=Resources(nodes=3, processes=2))
    text = Agents(address="127.0.0.1:1").render(job)
    assert text.startswith("# on each of up to 3 machines\nRANK=0 ")
    assert len(text.splitlines()) == 3


def test_the_interface_of_an_address_is_found() -> None:
    names = {name for _, name in socket.if_nameindex()}
    assert interface_of("127.0.0.1") in names
    assert interface_of("192.0.2.1") == ""
