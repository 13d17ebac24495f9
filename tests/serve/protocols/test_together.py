"""Calls that are answered at once have the answers, and are counted, as if each were alone."""

import asyncio
import json

import numpy as np
import pytest

from drivetrain.core.bundle import Bundle, Manifest, digest_of
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.core.schema import Field, Schema
from drivetrain.serve.execution.batching import Batching
from drivetrain.serve.execution.engine import Engine
from drivetrain.serve.execution.models import Artefact, Cost, Model
from drivetrain.serve.protocols.calls import Service
from drivetrain.serve.protocols.identity import RequestIds
from drivetrain.serve.protocols.rows import RowsRoute
from drivetrain.serve.protocols.v2 import InferRoute
from drivetrain.serve.telemetry.metrics import Metrics
from drivetrain.serve.transport.exchange import JSON, Exchange

ANSWERS = {n: float(np.float32(n) * np.float32(0.1)) for n in range(7)}


def row(n):
    return json.dumps({"n": n}).encode(), {}


def tensor(n, **more):
    asked = {"name": "n", "datatype": "FP32", "shape": [1], "data": [n]}
    return json.dumps({"inputs": [asked], **more}).encode(), {}


def binary(n):
    size = {"binary_data_size": 4}
    inputs = [{"name": "n", "datatype": "FP32", "shape": [1], "parameters": size}]
    outputs = [{"name": "tenth", "parameters": {"binary_data": True}}]
    text = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    header = {b"inference-header-content-length": b"%d" % len(text)}
    return text + np.float32(n).tobytes(), header


ASKED = {
    "row": (RowsRoute, row),
    "tensor": (InferRoute, tensor),
    "named": (InferRoute, lambda n: tensor(n, id=f"mine-{n}")),
    "binary": (InferRoute, binary),
    "mixed": (InferRoute, lambda n: binary(n) if n % 2 else tensor(n)),
}


class Asked(Exchange):
    """A request whose answer is kept; one that is broken cannot be written."""

    broken = False
    status = 0

    def __init__(self, body, headers):
        super().__init__(b"POST", b"/", headers)
        self.body = body

    def respond(self, status, body=b"", kind=JSON, extra=b""):
        if self.broken and status == 200:
            raise OSError("broken")
        assert not self.status
        self.status, self.said, self.kind, self.lines = status, body, kind, extra

    @property
    def answered(self):
        return self.status != 0


class Kept:
    """A recorder, which wants to know of each answer."""

    def __init__(self):
        self.inputs = []

    def offer(self, model, request_id, latency, inputs, outputs, role="stable"):
        self.inputs.append([float(array[0]) for array in inputs])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from onnx import TensorProto, helper

    rows = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows"]) for n in ("n", "tenth")]
    made = helper.make_graph(
        [helper.make_node("Mul", ["n", "part"], ["tenth"])],
        *("tenth", rows[:1], rows[1:]),
        [helper.make_tensor("part", TensorProto.FLOAT, [], [0.1])],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    proto = helper.make_model(made, ir_version=IR_VERSION, opset_imports=opsets)
    inputs, outputs = (Schema((Field(name, "float32"),)) for name in ("n", "tenth"))
    path = tmp_path_factory.mktemp("bundle") / "tenth"
    manifest = Manifest(name="tenth", inputs=inputs, outputs=outputs)
    Bundle.write(path, Graph.from_proto(proto), manifest, {})
    loaded = Model.load("tenth", Artefact(digest_of(path), path))
    loaded.cost = Cost(1e-5, 1e-5, 16)  # whatever was measured, those that wait share a run
    return loaded


def drive(model, kind, exchanges, recorder=None):
    """Have them answered in one run; gives the metrics."""
    metrics = Metrics()

    async def main():
        engine = Engine(Batching(inline_seconds=1.0), metrics, asyncio.get_running_loop())
        engine.open(model)
        ids = RequestIds()
        service = Service(engine=engine, metrics=metrics, request_ids=ids, recorder=recorder)
        route = kind(model, service)
        for exchange in exchanges:
            route(exchange)
        while not all(exchange.answered for exchange in exchanges):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert engine.held == 0

    asyncio.run(asyncio.wait_for(main(), 10))
    return metrics


def counted(metrics):
    """Requests by status, those in the histogram, those in the statistics."""
    codes = {key[3]: numbers[0] for key, numbers in metrics.requests.numbers().items()}
    (durations,) = metrics.request_seconds.numbers().values()
    (tally,) = metrics.statistics.numbers().values()
    return codes, sum(durations[:-1]), tally[:3]


@pytest.mark.parametrize("form", ASKED)
def test_each_has_the_answer_that_it_would_have_alone(model, form):
    kind, asked = ASKED[form]
    together, alone = ([Asked(*asked(n)) for n in ANSWERS] for _ in range(2))
    recorder = Kept()
    metrics = drive(model, kind, together), drive(model, kind, alone, recorder)
    for one, other in zip(together, alone, strict=True):
        assert one.status == other.status == 200
        assert (one.said, one.kind) == (other.said, other.kind)
        assert one.lines.split(b"\r\n")[1:] == other.lines.split(b"\r\n")[1:]
        assert one.on_gone is other.on_gone is None
    assert len({exchange.lines for exchange in together}) == len(together)
    assert recorder.inputs == [[float(n)] for n in ANSWERS]
    runs = metrics[0].batch_rows.of("tenth", model.version)
    assert (sum(runs.counts), runs.sum) == (1, 7)
    assert counted(metrics[0]) == counted(metrics[1]) == ({"200": 7.0}, 7, (7, 0, 7))


def test_each_has_its_own_answer_and_its_own_name(model):
    exchanges = [Asked(*row(n)) for n in ANSWERS]
    exchanges[2].headers = {b"x-request-id": b"mine"}
    drive(model, RowsRoute, exchanges)
    for n, exchange in enumerate(exchanges):
        said = json.loads(exchange.said)
        assert said["version"] == model.version
        assert np.float32(said["predictions"][0]["tenth"]) == np.float32(ANSWERS[n])
    assert exchanges[2].lines == b"x-request-id: mine\r\n"


@pytest.mark.parametrize("recorder", [None, Kept()])
def test_an_answer_that_cannot_be_written_fails_alone(model, recorder):
    exchanges = [Asked(*row(n)) for n in ANSWERS]
    exchanges[3].broken = True
    metrics = drive(model, RowsRoute, exchanges, recorder)
    assert [exchange.status for exchange in exchanges] == [200, 200, 200, 500, 200, 200, 200]
    assert counted(metrics) == ({"200": 6.0, "500": 1.0}, 7, (6, 1, 6))
