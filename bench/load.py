"""Load: wrk and h2load as processes, and what they say of a server."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import Running, spawn

JSON = "application/json"
BINARY = "application/octet-stream"

_SCRIPT = """
local file = assert(io.open(os.getenv("LOAD_BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
for name, value in string.gmatch(os.getenv("LOAD_HEADERS"), "([^:]+):([^;]+);") do
  wrk.headers[name] = value
end
done = function(summary, latency, requests)
  local e = summary.errors
  print(string.format("LOAD %d %d %d %d %d %d %d %d %d", summary.requests, summary.duration,
    e.connect, e.read, e.write, e.status, e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is posted again and again.

    Attributes:
        target: the path.
        body: the content.
        kind: its content type.
        headers: further headers.
    """

    target: str
    body: bytes
    kind: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def all_headers(self) -> dict[str, str]:
        """The content type among them."""
        return {"Content-Type": self.kind, **self.headers}


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a load process saw.

    Attributes:
        answered: requests with an answer of 2xx.
        failed: with another answer, none, or a broken connection.
        seconds: how long it lasted.
        p50: of the answers' seconds; 0 where the load does not say.
        p99: the same.
        cpu: CPU seconds of the load process over ``seconds``: its share of one core.
        bytes_each: of content in an answer; 0 where the load does not say.
        late: of those answered, how many came after the time that was asked about.
    """

    answered: int
    failed: int
    seconds: float
    p50: float = 0.0
    p99: float = 0.0
    cpu: float = 0.0
    bytes_each: float = 0.0
    late: int = 0

    @property
    def rps(self) -> float:
        """Answers of 2xx a second."""
        return self.answered / self.seconds


def missing() -> list[str]:
    """The load generators that are not installed."""
    return [name for name in ("wrk", "h2load") if shutil.which(name) is None]


def wrk(
    url: str,
    request: Request,
    connections: int,
    seconds: float,
    cores: Sequence[int] | None = None,
    during: Callable[[], object] | None = None,
) -> Load:
    """Post one request over and over, each connection waiting for its answer.

    Args:
        url: the server's address.
        request: what is posted.
        connections: the concurrency.
        seconds: whole ones; wrk takes no others.
        cores: those that wrk may use.
        during: called while the load runs.

    Raises:
        RuntimeError: wrk failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder, "body"), Path(folder, "load.lua")
        body.write_bytes(request.body)
        script.write_text(_SCRIPT)
        headers = "".join(f"{name}:{value};" for name, value in request.all_headers.items())
        command = ["wrk", "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--timeout", "10s"]
        text, cpu = _run(
            [*command, "-s", str(script), url + request.target],
            {"LOAD_BODY": str(body), "LOAD_HEADERS": headers},
            cores,
            during,
        )
    return of_wrk(text, cpu)


def of_wrk(text: str, cpu: float = 0.0) -> Load:
    """What our script let wrk print.

    Raises:
        RuntimeError: it is not there.
    """
    found = re.search(r"^LOAD (\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)$", text, re.M)
    if found is None:
        raise RuntimeError(f"wrk said: {text.strip()[-500:]}")
    total, micros, connect, read, write, status, timeout, p50, p99 = map(int, found.groups())
    seconds = micros / 1e6
    return Load(
        answered=total - status,
        failed=connect + read + write + status + timeout,
        seconds=seconds,
        p50=p50 / 1e6,
        p99=p99 / 1e6,
        cpu=cpu / seconds,
    )


def h2load(
    url: str,
    request: Request,
    connections: int,
    seconds: float,
    *,
    http1: bool = False,
    rate: float = 0.0,
    streams: int = 1,
    patience: float = 0.0,
    cores: Sequence[int] | None = None,
    during: Callable[[], object] | None = None,
) -> Load:
    """Post one request over HTTP/2 without TLS, or HTTP/1.1.

    Args:
        url: the server's address.
        request: what is posted.
        connections: how many.
        seconds: whole ones; h2load takes no others.
        http1: speak HTTP/1.1.
        rate: requests a second in all, whatever the answers take as long as connections have
            room; 0 sends the next one at each answer.
        streams: requests that a connection has under way at most.
        patience: seconds after which an answer is late; 0 does not ask.
        cores: those that h2load may use.
        during: called while the load runs.

    Raises:
        RuntimeError: h2load failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder, "body"), Path(folder, "log")
        body.write_bytes(request.body)
        command = ["h2load", "-t1", f"-c{connections}", f"-m{streams}", "-d", str(body)]
        command += ["-D", f"{round(seconds)}s"]
        command += [f"--log-file={log}"] if patience else []
        command += ["--h1"] if http1 else []
        command += [f"--rps={rate / connections:g}"] if rate else []
        for name, value in request.all_headers.items():
            command += ["-H", f"{name.lower()}: {value}"]
        text, cpu = _run([*command, url + request.target], {}, cores, during)
        late = _late(log, patience) if patience else 0
    return of_h2load(text, seconds, cpu, late)


def _late(log: Path, patience: float) -> int:
    """The answers of 2xx that h2load's log has as slower; each line ends with microseconds."""
    lines = (line.split("\t") for line in log.read_text().splitlines())
    return sum(code[:1] == "2" and int(micros) > patience * 1e6 for _, code, micros, *_ in lines)


def of_h2load(text: str, seconds: float, cpu: float = 0.0, late: int = 0) -> Load:
    """What h2load printed of a run of so many seconds.

    Raises:
        RuntimeError: it is not what it prints.
    """
    requests = re.search(
        r"requests: (\d+) total, \d+ started, (\d+) done, \d+ succeeded, (\d+) failed", text
    )
    codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text)
    data = re.search(r"\((\d+)\) data", text)
    if requests is None or codes is None or data is None:
        raise RuntimeError(f"h2load said: {text.strip()[-500:]}")
    good, *bad = map(int, codes.groups())
    lost = max(int(requests[3]) - sum(bad), 0)
    return Load(
        answered=good,
        failed=sum(bad) + lost,
        seconds=seconds,
        cpu=cpu / seconds,
        bytes_each=int(data[1]) / max(good, 1),
        late=late,
    )


def _run(
    command: Sequence[str],
    env: Mapping[str, str],
    cores: Sequence[int] | None,
    during: Callable[[], object] | None,
) -> tuple[str, float]:
    """What a load process printed, and its CPU seconds."""
    if cores is not None:
        command = ["taskset", "-c", ",".join(map(str, cores)), *command]
    process = spawn(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)
    try:
        if during is not None:
            during()
        assert process.stdout is not None
        text = process.stdout.read().decode(errors="replace")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {text.strip()[-500:]}")
    return text, usage.ru_utime + usage.ru_stime


def cpu_of(server: Running, work: Callable[[], Load]) -> tuple[Load, float]:
    """A load, and the CPU seconds that the server's processes took for each answer of it."""
    before = server.cpu_seconds()
    load = work()
    return load, (server.cpu_seconds() - before) / max(load.answered, 1)


def pause(seconds: float) -> Callable[[], None]:
    """Something to do during a load."""
    return lambda: time.sleep(seconds)
