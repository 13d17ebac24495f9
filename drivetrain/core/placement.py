"""Where a graph runs: what can run it here, whether it gives the same, and what is fastest."""

import importlib.util
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.bundle import GRAPH, Bundle
from drivetrain.core.errors import unknown
from drivetrain.core.graph import Graph, Session
from drivetrain.core.need import need

AUTO, CPU = "auto", "cpu"
PROVIDERS: Mapping[str, str] = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""Execution providers of ONNX Runtime, by the name that a site gives them."""
GPUS = frozenset({"cuda", "tensorrt", "migraphx", "directml"})
OPENVINO: Mapping[str, str] = {"openvino": "fp32", "openvino-bf16": "bf16"}
"""OpenVINO by itself, and the precision of each."""
NAMES = (AUTO, CPU, *OPENVINO, *PROVIDERS)

PARITY: Mapping[str, float] = {"openvino-bf16": 5e-2, "tensorrt": 1e-3, "cuda": 1e-3}
_PARITY = 1e-4
"""The greatest difference from the plain CPU, if a site says nothing: rounding in another order,
TensorFloat-32 where a GPU uses it, and bfloat16's eight bits through a dozen layers."""

HEAVY = frozenset(
    {
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"),
        *("FusedConv", "FusedGemm", "FusedMatMul", "QLinearConv", "QLinearMatMul", "QGemm"),
        *("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
        *("Attention", "MultiHeadAttention", "GroupQueryAttention", "NhwcFusedConv"),
    }
)
"""The operators that a model's time goes into. An asked-for provider must have taken each of
them; strings and shapes may stay on the processor, where providers themselves leave them."""

ROWS = (1, 64)
_SECONDS = 2.0
_TURN, _SHORT = 5, 2e-3
"""Runs of a turn, where one takes less than so many seconds."""
_MARGIN = 0.95
"""Of the time on the plain CPU: what is no faster than this is not worth a second runtime."""


@dataclass(frozen=True)
class Trial:
    """What one placement gave.

    Attributes:
        placement: its name.
        seconds: of one run, by rows; empty where it was refused.
        difference: the greatest from the plain CPU.
        refused: why it cannot be picked; empty where it can.
    """

    placement: str
    seconds: Mapping[int, float] = field(default_factory=dict[int, float])
    difference: float = math.nan
    refused: str = ""

    def __str__(self) -> str:
        if self.refused:
            return f"{self.placement} refused ({self.refused})"
        times = ", ".join(f"{rows} rows {s * 1e6:.0f} µs" for rows, s in self.seconds.items())
        return f"{self.placement} {times}, off by {self.difference:.1g}"


@dataclass(frozen=True)
class Choice:
    """The fastest placement that gives the same, and what every candidate gave."""

    placement: str
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        return f"{self.placement} picked of: {'; '.join(map(str, self.trials))}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"picked": self.placement, "trials": [asdict(trial) for trial in self.trials]}


def checked(name: str) -> str:
    """A placement that there is, here or elsewhere.

    Raises:
        ValueError: there is none of this name; the error suggests the nearest.
    """
    if name not in NAMES:
        raise unknown("placement", name, NAMES, "[serve]")
    return name


def available() -> tuple[str, ...]:
    """The placements that are installed here, the plain CPU first."""
    found = set(need("onnxruntime", "serve").get_available_providers())
    names = [name for name, provider in PROVIDERS.items() if provider in found]
    if importlib.util.find_spec("openvino") and importlib.util.find_spec("onnx"):
        names += OPENVINO
    return (CPU, *names)


def load(name: str, bundle: Bundle, threads: int = 1) -> Session:
    """Load a bundle's graph where ``name`` says, wholly; its answers are not looked at.

    Raises:
        ImportError: what it needs is not installed.
        ValueError: it is not available here, or did not take the graph.
    """
    data = bundle.read(GRAPH)
    if name in OPENVINO:
        from drivetrain.core.openvino import OpenVINOSession

        features = bundle.manifest.features
        return OpenVINOSession(Graph(data), features, OPENVINO[name], threads)
    if name == CPU:
        return Session(data, threads)
    if name not in available():
        here = ", ".join(sorted(need("onnxruntime", "serve").get_available_providers()))
        raise ValueError(
            f"placement: found {name!r}, allowed here: {', '.join((AUTO, *available()))}; "
            f"{PROVIDERS[name]} is not in this onnxruntime, which has {here}."
        )
    return _on_provider(name, data, threads)


def load_checked(name: str, bundle: Bundle, parity: float = 0.0, threads: int = 1) -> Session:
    """:func:`load`, and hold its answers for made rows against those of the plain CPU.

    Args:
        name: the placement.
        bundle: its statistics say what the rows are like.
        parity: the greatest difference, 0 for the placement's own (:func:`difference`).
        threads: of one run.

    Raises:
        ImportError: what it needs is not installed.
        ValueError: it is not available here, did not take the graph, or gives something else.
    """
    session = load(name, bundle, threads)
    if name != CPU:
        plain = load(CPU, bundle, threads)
        found = _differs(session, plain, bundle, _rows(bundle, plain))
        if not found <= (most := parity or PARITY.get(name, _PARITY)):
            raise ValueError(
                f"placement {name!r}: found answers that differ from the plain CPU's by "
                f"{found:.3g}, allowed: {most:g} ([serve] parity)."
            )
    return session


def choose(
    bundle: Bundle,
    parity: float = 0.0,
    threads: int = 1,
    seconds: float = _SECONDS,
    candidates: Sequence[str] | None = None,
) -> Choice:
    """Measure every placement that is installed, and pick the fastest that gives the same.

    Each runs 1 and 64 made rows in turn, so that a machine that grows busy slows all alike; of
    each the fastest run counts. Faster is what takes less of the plain CPU's time in the
    geometric mean over both.

    Args:
        bundle: whose graph.
        parity: the greatest difference from the plain CPU, 0 for each placement's own.
        threads: of one run.
        seconds: about how long the measuring may take, after the loading.
        candidates: to measure; by default what is available.
    """
    plain = load(CPU, bundle, threads)
    rows = _rows(bundle, plain)
    sessions, refused = {CPU: plain}, dict[str, Trial]()
    differences = {CPU: 0.0}
    for name in available() if candidates is None else candidates:
        if name == CPU:
            continue
        try:
            session = load(name, bundle, threads)
            found = differences[name] = _differs(session, plain, bundle, rows)
        except Exception as error:  # each runtime has kinds of its own
            refused[name] = Trial(name, refused=str(error))
            continue
        most = parity or PARITY.get(name, _PARITY)
        if found <= most:
            sessions[name] = session
        else:
            why = f"answers differ by {found:.3g}, allowed: {most:g}"
            refused[name] = Trial(name, difference=found, refused=why)
    times = _times(sessions, bundle, rows, seconds)
    trials = [Trial(name, times[name], differences[name]) for name in sessions]
    return Choice(_fastest(times), (*trials, *refused.values()))


def difference(found: Sequence[Array], expected: Sequence[Array]) -> float:
    """How far answers are apart: the greatest ``|a - b| / max(1, |b|)`` of real numbers, and for
    classes and other values the share that are not equal. NaN equals NaN; a shape that is another
    is infinitely far."""
    most = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return math.inf
        if not ours.size:
            continue
        if ours.dtype.kind != "f":
            most = max(most, float(np.count_nonzero(ours != theirs)) / ours.size)
            continue
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))  # infinities too
        with np.errstate(invalid="ignore"):
            apart = np.where(same, 0.0, np.abs(a - b) / np.maximum(1.0, np.abs(b)))
        most = max(most, float(np.nan_to_num(apart, nan=math.inf, posinf=math.inf).max()))
    return most


# -- one execution provider ------------------------------------------------------------------------


def _on_provider(name: str, data: bytes, threads: int) -> Session:
    provider = PROVIDERS[name]

    def configure(options: Any) -> None:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")

    providers = dict.fromkeys((provider, "CPUExecutionProvider"))
    session = Session(data, threads, configure=configure, providers=tuple(providers))
    _check_taken(name, provider, session.assignment())
    session.placement = name
    if session.live:
        raise ValueError(
            f"placement: found {name!r}, allowed: cpu for a graph with live tensors; "
            f"{', '.join(sorted(session.live))} change between runs, and would be copied to the "
            "device in each."
        )
    return session


def _check_taken(name: str, provider: str, taken: Mapping[str, Sequence[str]]) -> None:
    """
    Raises:
        ValueError: the provider took nothing, or left an operator of :data:`HEAVY` to another.
    """
    left = {o for other, types in taken.items() if other != provider for o in types}
    if not taken.get(provider):
        raise ValueError(
            f"placement: found {name!r}, which does not take this graph: {provider} took none of "
            f"its nodes; {', '.join(sorted(taken)) or 'nobody'} has them."
        )
    if heavy := sorted(left & HEAVY):
        raise ValueError(
            f"placement: found {name!r}, which does not take this graph: {provider} left "
            f"{', '.join(heavy)} to {', '.join(sorted(set(taken) - {provider}))}."
        )


# -- measuring -------------------------------------------------------------------------------------

_Rows = Mapping[int, Mapping[str, Array]]


def _rows(bundle: Bundle, graph: Session) -> _Rows:
    """Made rows as the bundle's graph takes them, by their number."""
    from drivetrain.core import draw  # numpy.random costs a server that measures nothing its start

    batches = {n: draw.draw(bundle.manifest.inputs, bundle.fitted, n, seed=n) for n in ROWS}
    return {
        n: draw.feeds(graph.inputs, graph.input_schema, batch, seed=n)
        for n, batch in batches.items()
    }


def _differs(session: Session, plain: Session, bundle: Bundle, rows: _Rows) -> float:
    names = bundle.manifest.outputs.names
    return max(difference(session.raw(f, names), plain.raw(f, names)) for f in rows.values())


def _times(
    sessions: Mapping[str, Session], bundle: Bundle, rows: _Rows, seconds: float
) -> dict[str, dict[int, float]]:
    """The fastest run of each, until the time is over or nothing new can come. They take turns
    of a few runs: the first of a turn finds the processor's caches full of another's weights."""
    names = bundle.manifest.outputs.names
    best = {name: dict.fromkeys(rows, math.inf) for name in sessions}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or (rounds < 200 and time.perf_counter() < end):
        for name, session in sessions.items():
            for count, given in rows.items():
                for _ in range(_TURN if best[name][count] < _SHORT else 1):
                    spent = _seconds(lambda: session.raw(given, names))  # noqa: B023
                    best[name][count] = min(best[name][count], spent)
        rounds += 1
    return best


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _fastest(times: Mapping[str, Mapping[int, float]]) -> str:
    plain = times[CPU]

    def share(name: str) -> float:
        of_plain = [times[name][rows] / plain[rows] for rows in plain]
        return math.exp(sum(map(math.log, of_plain)) / len(of_plain))

    best = min(times, key=share)
    return best if share(best) < _MARGIN else CPU
