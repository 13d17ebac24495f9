"""Any running V2 server beside ours: what it says of its model makes the request."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np

from bench import ours
from bench.figure import Figure, figure
from bench.load import Request, wrk
from bench.model_a import VALUES
from bench.ours import Place, serving
from bench.speed import say


def beside(at: Place, quick: bool, address: str, model: str) -> Iterator[Figure]:
    """``rps_vs_v2_server_c1``, ``_c16`` and ``_c64``: one row of V2 JSON to both, in turn.

    Args:
        at: our bundle; serve its ``model.onnx`` there for a fair comparison.
        quick: fewer rounds.
        address: such as ``http://127.0.0.1:8000``.
        model: its name there.

    Raises:
        ValueError: the address is none, or the model's inputs cannot be made.
        RuntimeError: the server refuses the request.
    """
    parts = urlsplit(address)
    if parts.scheme != "http" or not parts.netloc:
        raise ValueError(f"--address: found {address!r}, allowed: http://host:port.")
    base = f"http://{parts.netloc}"
    with urlopen(f"{base}/v2", timeout=10) as answer:
        server = json.load(answer)
    with urlopen(f"{base}/v2/models/{model}", timeout=10) as answer:
        metadata = json.load(answer)
    theirs = Request(target=f"/v2/models/{model}/infer", body=row_of(metadata))
    title = f"{server.get('name', 'V2 server')} {server.get('version', '')} at {parts.netloc}"
    rounds, seconds = (3, 2.0) if quick else (5, 8.0)
    with serving(at) as mine:
        for concurrency, goal in ((1, 1.0), (16, 1.0), (64, 1.0)):
            ratios: list[float] = []
            for number in range(rounds + 1):
                pair = [(mine.url, ours.v2_row()), (base, theirs)]
                order = pair if number % 2 == 0 else pair[::-1]
                loads = {url: wrk(url, request, concurrency, seconds) for url, request in order}
                if not loads[base].answered:
                    raise RuntimeError(f"{title} answers no request at {theirs.target}")
                say(f"c{concurrency}: {title} {loads[base].rps:.0f}/s; "
                    f"ours {loads[mine.url].rps:.0f}/s")  # fmt: skip
                if number:  # the first pair warms both up
                    ratios.append(loads[mine.url].rps / loads[base].rps)
            yield figure(f"rps_vs_v2_server_c{concurrency}", ratios, title, goal)


def row_of(metadata: dict[str, Any]) -> bytes:
    """A V2 request of one made row for a model's metadata; free dimensions are 1.

    Raises:
        ValueError: a datatype that no number is made for.
    """
    random = np.random.default_rng(0)
    inputs: list[dict[str, Any]] = []
    for tensor in metadata["inputs"]:
        shape = [max(int(size), 1) for size in tensor["shape"]]
        kind, count = tensor["datatype"], int(np.prod(shape))
        if kind.startswith("FP"):
            data = np.round(random.normal(0, 1, count), 4).tolist()
        elif "INT" in kind:
            data = random.integers(0, 100 if kind.endswith("8") else VALUES, count).tolist()
        else:
            raise ValueError(f"input {tensor['name']!r}: found {kind}, allowed: numbers.")
        inputs.append({"name": tensor["name"], "datatype": kind, "shape": shape, "data": data})
    return json.dumps({"inputs": inputs}, separators=(",", ":")).encode()
