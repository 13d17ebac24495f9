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
from drivetrain.serve.execution.models import Artefact, Model
from drivetrain.serve.protocols.calls import Service
from drivetrain.serve.protocols.identity import RequestIds
from drivetrain.serve.protocols.rows import RowsRoute
from drivetrain.serve.telemetry.metrics import Metrics
from drivetrain.serve.transport.exchange import JSON, Exchange

ANSWERS = {n: float(np.float32(n) * np.float32(0.1)) for n in range(7)}


class Asked(Exchange):
    """A request whose answer is kept; one that is broken cannot be written."""

    broken = False
    status = 0

    def __init__(self, n, **headers):
        super().__init__(b"POST", b"/predict/tenth", headers)
        self.body = json.dumps({"n": n}).encode()

    def respond(self, status, body=b"", kind=JSON, extra=b""):
        if self.broken and status == 200:
            raise OSError("broken")
        assert not self.status
        self.status, self.said, self.lines = status, body, extra

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
    return Model.load("tenth", Artefact(digest_of(path), path))


def drive(model, exchanges, recorder=None, counts=None):
    """Have them answered in one run; gives the metrics."""
    metrics = Metrics()

    async def main():
        engine = Engine(Batching(inline_seconds=1.0), metrics, asyncio.get_running_loop())
        engine.open(model)
        ids = RequestIds()
        service = Service(engine=engine, metrics=metrics, request_ids=ids, recorder=recorder)
        route = RowsRoute(model, service)
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


@pytest.mark.parametrize("alone", [False, True])
def test_each_has_its_own_answer_and_its_own_name(model, alone):
    exchanges = [Asked(n) for n in ANSWERS]
    exchanges[2].headers = {b"x-request-id": b"mine"}
    recorder = Kept() if alone else None
    metrics = drive(model, exchanges, recorder)
    for n, exchange in enumerate(exchanges):
        said = json.loads(exchange.said)
        assert exchange.status == 200
        assert said["version"] == model.version
        assert np.float32(said["predictions"][0]["tenth"]) == np.float32(ANSWERS[n])
        assert exchange.on_gone is None
    assert exchanges[2].lines == b"x-request-id: mine\r\n"
    assert len({exchange.lines for exchange in exchanges}) == len(exchanges)
    assert counted(metrics) == ({"200": 7.0}, 7, (7, 0, 7))
    if recorder is not None:
        assert recorder.inputs == [[float(n)] for n in ANSWERS]


@pytest.mark.parametrize("alone", [False, True])
def test_an_answer_that_cannot_be_written_fails_alone(model, alone):
    exchanges = [Asked(n) for n in ANSWERS]
    exchanges[3].broken = True
    metrics = drive(model, exchanges, Kept() if alone else None)
    assert [exchange.status for exchange in exchanges] == [200, 200, 200, 500, 200, 200, 200]
    assert counted(metrics) == ({"200": 6.0, "500": 1.0}, 7, (6, 1, 6))
