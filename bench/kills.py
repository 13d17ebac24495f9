"""A training of two processes on agents, of which one after another is killed or stopped.

    python bench/kills.py --quick --json

Three agents run it, two at a time, so that there are always two processes and the end can be held,
to the bit, against a training that nobody disturbed. Victims are drawn: a worker, the leader, an
agent, an agent with its worker (a machine); they are killed, or stopped. One is hit when the
training has gone on for some batches since the last. What is measured is the time until the agents
have started a new generation, and until all of its processes have trained on, of which most goes
into importing torch. A training that stands still for four minutes is a hang, and an error.
Everything runs on this machine, over loopback.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from safetensors.torch import load_file

from bench.figure import Figure, figure, show, words
from drivetrain.core.job import Job, Resources
from drivetrain.launch.agents import Agents
from drivetrain.launch.local import Local, free_port

WORKER = Path(__file__).with_name("kills_worker.py")
KILLS, EPOCHS = 50, 100
SHORT = (12, 30)
"""With --quick: kills and epochs; the whole is 50 and 100."""
AGENTS = 3
HANG_SECONDS = 240.0
_STOPPED_SECONDS = 8.0
"""After which one that was stopped goes on, if the others have not gone on without it before."""
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Place:
    """A worker: where it is, and how many batches it has taken."""

    generation: int
    rank: int
    process: int
    agent: int
    batches: int


class Trial:
    """The agents of one training, kept at their number.

    Args:
        folder: of the training.
        epochs: that it trains.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder = folder
        self.epochs = epochs
        self.address = f"127.0.0.1:{free_port()}"
        self.agents: list[subprocess.Popen[bytes]] = []
        self.log = (folder / "agents.log").open("wb")

    def keep(self) -> bool:
        """Replace agents that were killed; whether the training has ended."""
        ended = [agent.poll() for agent in self.agents]
        if any(status is not None and status >= 0 for status in ended):
            if not any(status == 0 for status in ended):
                raise RuntimeError((self.folder / "agents.log").read_text()[-3000:])
            return True
        self.agents = [agent for agent in self.agents if agent.poll() is None]
        while len(self.agents) < AGENTS:
            command = (sys.executable, str(Path(__file__)), "agent", str(self.folder))
            given = (*command, self.address, str(self.epochs))
            self.agents.append(subprocess.Popen(given, stderr=self.log))
        return False

    def workers(self) -> list[Place]:
        """Those of the newest generation of which all have begun; none if there is none."""
        found: dict[int, list[Place]] = {}
        for path in self.folder.glob("seen-*"):
            generation, *place = map(int, path.name.split("-")[1:])
            with contextlib.suppress(FileNotFoundError):
                here = Place(generation, *place, path.stat().st_size)  # pyright: ignore[reportCallIssue]
                found.setdefault(generation, []).append(here)
        whole = [n for n, places in found.items() if len(places) == 2]
        return sorted(found[max(whole)], key=lambda place: place.rank) if whole else []

    def started(self) -> int:
        """The generation that the agents have started last."""
        said = (self.folder / "agents.log").read_text()
        return max(map(int, re.findall(r"generation (\d+): \d+ processes", said)), default=0)

    def close(self) -> None:
        """End what runs."""
        for agent in self.agents:
            with contextlib.suppress(ProcessLookupError):
                agent.send_signal(signal.SIGCONT)
            agent.terminate()
        for agent in self.agents:
            try:
                agent.wait(30)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
        self.log.close()


def gone_on(trial: Trial, after: int, batches: int, since: float) -> list[Place]:
    """Wait until a generation after ``after`` has trained on so many batches, or the end.

    Raises:
        TimeoutError: it did not in :data:`HANG_SECONDS`.
    """
    while not trial.keep():
        workers = trial.workers()
        newer = [place for place in workers if place.generation > after]
        if newer and all(place.batches > batches for place in newer):
            return newer
        if time.monotonic() > since + HANG_SECONDS:
            raise TimeoutError((trial.folder / "agents.log").read_text()[-3000:])
        time.sleep(_POLL_SECONDS)
    return []


def hit(trial: Trial, what: str, how: int, workers: list[Place]) -> tuple[float, float]:
    """Kill or stop a victim; seconds until others were started, and until they had gone on."""
    leader, worker = workers
    of_agent = {"agent": [worker.agent], "leading agent": [leader.agent]}
    pids = {
        **of_agent,
        "worker": [worker.process],
        "leader": [leader.process],
        "machine": [worker.agent, worker.process],
        "leading machine": [leader.agent, leader.process],
    }[what]
    began = time.monotonic()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
    started = last = began
    while trial.started() <= leader.generation and not trial.keep():
        time.sleep(_POLL_SECONDS)
        started = time.monotonic()
        if started > began + _STOPPED_SECONDS and how == signal.SIGSTOP and last == began:
            last = wake(pids)
        if started > began + HANG_SECONDS:
            raise TimeoutError((trial.folder / "agents.log").read_text()[-3000:])
    gone_on(trial, leader.generation, 0, began)
    ended = time.monotonic()
    if how == signal.SIGSTOP:
        wake(pids)
    return started - began, ended - began


def wake(pids: list[int]) -> float:
    """Let stopped processes go on; when that was."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return time.monotonic()


def disturbed(folder: Path, kills: int, epochs: int) -> dict[str, list[tuple[float, float]]]:
    """Train while victims are hit; the seconds that each cost, by what it was."""
    generator = random.Random(0)
    victims = ("worker", "leader", "agent", "leading agent", "machine", "leading machine")
    trial = Trial(folder, epochs)
    costs: dict[str, list[tuple[float, float]]] = {}
    try:
        generation = 0
        for number in range(kills):
            began = time.monotonic()
            workers = gone_on(trial, generation, generator.randint(1, 60), began)
            if not workers:
                raise RuntimeError(f"the training ended after {number} kills: give it more epochs")
            generation = workers[0].generation
            what = generator.choice(victims)
            how = signal.SIGSTOP if number % 5 == 4 else signal.SIGKILL
            cost = hit(trial, what, how, workers)
            name = "stopped" if how == signal.SIGSTOP else what
            costs.setdefault(name, []).append(cost)
            told = f"{number + 1}: {how.name} {what}: started after {cost[0]:.1f} s"
            print(f"{told}, gone on after {cost[1]:.1f} s", file=sys.stderr, flush=True)
        gone_on(trial, 1 << 60, 0, time.monotonic() + 600)
    finally:
        trial.close()
    return costs


def figures(quick: bool) -> Iterator[Figure]:
    """How long it takes to go on, and whether the end is the same."""
    kills, epochs = SHORT if quick else (KILLS, EPOCHS)
    with tempfile.TemporaryDirectory() as place:
        whole, killed = Path(place, "whole"), Path(place, "killed")
        for folder in (whole, killed):
            (folder / "run").mkdir(parents=True)
        if Local().start(job(whole, epochs)):
            raise RuntimeError("the training that nobody disturbed failed")
        costs = disturbed(killed, kills, epochs)
        for rank in (0, 1):
            name = f"weights-{rank}.safetensors"
            one, two = load_file(whole / name), load_file(killed / name)
            equal = float(all(bool((one[key] == two[key]).all()) for key in one))
            if not equal:
                break
    peer = f"{kills} kills"
    of = {
        "worker_kill": [c for name in ("worker", "leader") for c in costs.get(name, [])],
        "agent_kill": [c for n, f in costs.items() if "agent" in n or "machine" in n for c in f],
        "stopped": costs.get("stopped", []),
    }
    for name, found in of.items():
        if found:
            yield figure(f"{name}_notice_seconds", [started for started, _ in found], peer, 10.0)
            yield figure(f"{name}_recovery_seconds", [gone for _, gone in found], peer, 10.0)
    yield figure("resume_bit_equal", [equal], f"an undisturbed training, {peer}", 1.0)


def job(folder: Path, epochs: int, nodes: int = 1) -> Job:
    """The training, as two processes of one machine or one each of two."""
    return Job(
        name="kills",
        command=(sys.executable, str(WORKER), str(folder), str(epochs)),
        environment={"OMP_NUM_THREADS": "1"},
        resources=Resources(nodes=nodes, processes=2 // nodes),
    )


def agent(folder: str, address: str, epochs: str) -> int:
    """One agent of the training."""
    agents = Agents(address=address, at_least=2, restarts=10_000, wait_seconds=HANG_SECONDS)
    return agents.start(job(Path(folder), int(epochs), nodes=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["agent"]:
        sys.exit(agent(*sys.argv[2:]))
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
