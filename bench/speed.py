"""How fast our server answers model A, beside its peers and beside what no server can beat."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from bench import model_a, ours
from bench.figure import Figure, figure
from bench.load import Load, Request, cpu_of, h2load, wrk
from bench.ours import Place, serving
from bench.peer import PYTHON_PEERS, echo, grpc_aio
from bench.processes import Running

GOALS = {1: 6.0, 16: 5.0, 64: 2.0}
"""Of requests a second over those of the best Python peer, by concurrency."""
_GRPC_BYTES = 20
"""An answer with a prediction is longer; one that only says what failed has no message at all."""


def beside_python_peers(at: Place, quick: bool) -> Iterator[Figure]:
    """``rps_vs_best_python_peer_c1``, ``_c16`` and ``_c64``: one row of JSON, in turn."""
    rounds, seconds = (3, 2.0) if quick else (5, 8.0)
    ratios: dict[int, dict[str, list[float]]] = {c: {} for c in GOALS}
    with serving(at) as mine:
        for peer in PYTHON_PEERS:
            try:
                with peer.serving(at) as theirs:
                    title = peer.title()
                    sides = ((mine, ours.one_row()), (theirs, peer.request()))
                    for concurrency, found in ratios.items():
                        found[title] = _in_turn(sides, concurrency, rounds, seconds, title)
            except RuntimeError as error:
                say(f"left out: {error}")
    for concurrency, found in ratios.items():
        if found:
            best = min(found, key=lambda title: statistics.median(found[title]))
            name = f"rps_vs_best_python_peer_c{concurrency}"
            yield figure(name, found[best], best, GOALS[concurrency])


def _in_turn(
    sides: Sequence[tuple[Running, Request]],
    concurrency: int,
    rounds: int,
    seconds: float,
    title: str,
) -> list[float]:
    """Our answers a second over the peer's, round by round; who goes first changes."""
    for server, request in sides:
        wrk(server.url, request, concurrency, 1)
    ratios: list[float] = []
    for number in range(rounds):
        order = sides if number % 2 == 0 else sides[::-1]
        loads = {server.pid: wrk(server.url, request, concurrency, seconds)
                 for server, request in order}  # fmt: skip
        mine, theirs = (loads[server.pid] for server, _ in sides)
        if not theirs.answered:
            raise RuntimeError(f"{title} answered nothing at concurrency {concurrency}")
        ratios.append(mine.rps / theirs.rps)
        say(f"c{concurrency}: {title} {_shown(theirs)}; ours {_shown(mine)}")
    return ratios


def cpu(at: Place, quick: bool) -> Iterator[Figure]:
    """``cpu_us_per_request_c64``: of all our processes, with metrics, checks and limits as ever."""
    with serving(at) as mine:
        wrk(mine.url, ours.one_row(), 64, 1)
        micros: list[float] = []
        for _ in range(3 if quick else 7):
            load, seconds = cpu_of(mine, lambda: wrk(mine.url, ours.one_row(), 64, 4))
            micros.append(seconds * 1e6)
            say(f"c64: ours {_shown(load)}")
    yield figure("cpu_us_per_request_c64", micros, "none: a bound", 24.0)


def floor(at: Place, quick: bool) -> Iterator[Figure]:
    """``p50_c1_vs_floor``: seconds over seconds, so less is better and 1 is the floor."""
    with serving(at) as mine:
        yield _beside_floor(at, quick, "p50_c1_vs_floor", mine, ours.one_row(), 1, 1.6)


def binary(at: Place, quick: bool) -> Iterator[Figure]:
    """64 rows as binary tensors, seconds over seconds, less is better.

    ``binary_64_vs_ort``: over ORT's run of ready arrays, again and again, and an echo of the same
    bytes in and out. ``binary_64_vs_bare``: over a server that does both and nothing else. A run
    takes longer where another request's transfer lies before it than where another run does.
    """
    with serving(at) as mine:
        request = ours.binary(64)
        yield _beside_floor(at, quick, "binary_64_vs_ort", mine, request, 64, 1.03)
        bare = echo(_answer_bytes(mine, request), 64)
        with bare.serving(at) as line:
            ratios: list[float] = []
            for _, p50 in _p50_in_turn((mine, line), request, quick):
                ratios.append(p50[mine.pid] / p50[line.pid])
                say(f"binary_64_vs_bare: ours {p50[mine.pid] * 1e6:.0f} µs, "
                    f"bare {p50[line.pid] * 1e6:.0f} µs")  # fmt: skip
        yield figure("binary_64_vs_bare", ratios, bare.title(), 1.03)


def _beside_floor(
    at: Place, quick: bool, name: str, mine: Running, request: Request, rows: int, goal: float
) -> Figure:
    bare = echo(_answer_bytes(mine, request))
    with bare.serving(at) as line:
        ratios: list[float] = []
        for run, p50 in _p50_in_turn((mine, line), request, quick, lambda: _ort_seconds(at, rows)):
            ratios.append(p50[mine.pid] / (run + p50[line.pid]))
            say(f"{name}: ours {p50[mine.pid] * 1e6:.0f} µs, ORT {run * 1e6:.0f} µs, "
                f"echo {p50[line.pid] * 1e6:.0f} µs")  # fmt: skip
        return figure(name, ratios, f"ORT, {rows} rows, + {bare.title()}", goal)


def _answer_bytes(mine: Running, request: Request) -> int:
    status, body = ours.post(mine.port, request)
    if status != 200:
        raise RuntimeError(f"found status {status} of our own server: {body[:300]!r}")
    return len(body)


def _p50_in_turn(
    servers: tuple[Running, Running],
    request: Request,
    quick: bool,
    before: Callable[[], float] = lambda: 0.0,
) -> Iterator[tuple[float, dict[int, float]]]:
    """What was measured before each round, and the round's medians by process; who goes first
    changes."""
    for number in range(5 if quick else 15):
        found = before()
        pair = servers if number % 2 == 0 else servers[::-1]
        yield found, {server.pid: wrk(server.url, request, 1, 2).p50 for server in pair}


def _ort_seconds(at: Place, rows: int) -> float:
    """The median time of a run over ready arrays, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(at.onnx), options)
    feeds = model_a.feeds(model_a.rows(rows))
    times: list[float] = []
    for number in range(700):
        begin = time.perf_counter()
        session.run(None, feeds)
        if number >= 100:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def grpc(at: Place, quick: bool) -> Iterator[Figure]:
    """``grpc_vs_grpc_aio_c16``: ModelInfer, unary, the same message to both; the better peer."""
    rounds, seconds = (3, 2.0) if quick else (5, 8.0)
    request = ours.over_grpc()
    ratios: dict[str, list[float]] = {}
    with serving(at) as mine:
        try:
            _grpc(mine, request, 1, 1.0)
        except RuntimeError as error:
            say(f"left out: our gRPC does not answer at {mine.url}: {error}")
            return
        for peer in (grpc_aio(1), grpc_aio(2)):
            try:
                with peer.serving(at, lambda server: _answers_grpc(server, request)) as theirs:
                    ratios[peer.title()] = found = []
                    for number in range(rounds):
                        pair = (mine, theirs) if number % 2 == 0 else (theirs, mine)
                        loads = {s.pid: _grpc(s, request, 16, seconds) for s in pair}
                        found.append(loads[mine.pid].rps / loads[theirs.pid].rps)
                        say(f"gRPC c16: {peer.title()} {_shown(loads[theirs.pid])}; "
                            f"ours {_shown(loads[mine.pid])}")  # fmt: skip
            except RuntimeError as error:
                ratios.pop(peer.title(), None)
                say(f"left out: {error}")
    if ratios:
        best = min(ratios, key=lambda title: statistics.median(ratios[title]))
        yield figure("grpc_vs_grpc_aio_c16", ratios[best], f"{best} + ORT", 5.0)


def _grpc(server: Running, request: Request, connections: int, seconds: float) -> Load:
    """A load whose every answer held a prediction: a failed call also has status 200."""
    load = h2load(server.url, request, connections, seconds)
    if load.failed or not load.answered or load.bytes_each < _GRPC_BYTES:
        raise RuntimeError(
            f"{load.answered} answers of {load.bytes_each:.0f} bytes each, {load.failed} failed"
        )
    return load


def _answers_grpc(server: Running, request: Request) -> bool:
    try:
        return _grpc(server, request, 1, 1.0).answered > 0
    except RuntimeError:
        return False


def say(text: str) -> None:
    """What a figure was made of goes where figures do not."""
    print(text, file=sys.stderr, flush=True)


def _shown(load: Load) -> str:
    failed = f", {load.failed} failed" if load.failed else ""
    return f"{load.rps:.0f}/s (the load took {load.cpu:.0%} of a core{failed})"
