"""ModelInfer over gRPC: any message to its columns, as protobuf reads it, and back."""

import asyncio
import gc
import struct
import weakref
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.core.batch import Batch
from drivetrain.serve.execution.engine import Batching, Engine
from drivetrain.serve.execution.models import Artefact, Model
from drivetrain.serve.protocols.calls import Service
from drivetrain.serve.protocols.grpc_infer import GrpcInferRoute, address, after_address, id_of
from drivetrain.serve.protocols.grpc_stream_infer import InferStream, StreamInferRoute
from drivetrain.serve.protocols.identity import RequestIds
from drivetrain.serve.protocols.messages_v2 import messages
from drivetrain.serve.telemetry.metrics import Metrics
from drivetrain.serve.transport.exchange import Exchange

TYPES = {"carrier": "BYTES", "distance": "FP32", "hour": "INT64"}
ORDERS = (("carrier", "distance", "hour"), ("hour", "carrier", "distance"))
ANSWER = {"late": np.float32, "slot": np.int64}
ROW = st.fixed_dictionaries(
    {
        "carrier": st.text(max_size=40),
        "distance": st.floats(width=32),
        "hour": st.integers(-(2**63), 2**63 - 1),
    }
)


class Kept(Exchange):
    """A request whose answer is kept."""

    def __init__(self, body, deadline=None):
        super().__init__(b"POST", b"/inference.GRPCInferenceService/ModelInfer", {})
        self.body = body
        self.deadline = deadline
        self.answer = None

    def respond(self, status, body=b"", kind=b"", extra=b""):
        self.answer = status, body

    @property
    def answered(self):
        return self.answer is not None


@pytest.fixture(scope="module")
def service():
    metrics = Metrics()
    loop = asyncio.new_event_loop()
    yield Service(
        engine=Engine(Batching(), metrics, loop), metrics=metrics, request_ids=RequestIds()
    )
    loop.close()


@pytest.fixture(scope="module")
def model(tiny):
    return Model.load("tiny", Artefact(tiny.digest, tiny.path))


@pytest.fixture
def route(model, service):
    return GrpcInferRoute(model, service)


def raw_of(name, values):
    if name == "carrier":
        texts = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    code = {"distance": "f", "hour": "q"}[name]
    return struct.pack(f"<{len(values)}{code}", *values)


def request(rows, names=ORDERS[0], raw=True, matrix=False, **fields):
    message = messages()["ModelInferRequest"](model_name="tiny", **fields)
    for name in names:
        values = [row[name] for row in rows]
        shape = [len(rows), 1] if matrix else [len(rows)]
        tensor = message.inputs.add(name=name, datatype=TYPES[name], shape=shape)
        if raw:
            message.raw_input_contents.append(raw_of(name, values))
        elif name == "carrier":
            tensor.contents.bytes_contents.extend(value.encode() for value in values)
        elif name == "distance":
            tensor.contents.fp32_contents.extend(values)
        else:
            tensor.contents.int64_contents.extend(values)
    return message


def arrays(model, call):
    found = model.columns.arrays([call.columns])
    return [array.tolist() for array in found]


def same(found, rows):
    expected = [[row[name] for row in rows] for name in TYPES]
    return repr(found) == repr([expected[0], np.float32(expected[1]).tolist(), expected[2]])


@given(
    st.lists(ROW, min_size=1, max_size=5),
    st.sampled_from(ORDERS),
    st.booleans(),
    st.booleans(),
    st.text(max_size=30),
    st.booleans(),
)
def test_any_request_is_read_alike_the_first_time_and_by_its_likeness(
    model, service, rows, names, raw, matrix, identity, kind
):
    route = GrpcInferRoute(model, service)
    body = request(rows, names, raw, matrix, id=identity).SerializeToString()
    body = body if kind else bytearray(body)
    for _ in range(3):
        call = route.decode(Kept(body))
        assert same(arrays(model, call), rows)
        assert call.rows == len(rows)
        assert call.options.outputs == (0, 1)
        assert call.request_id == identity or not identity


def test_a_request_that_begins_like_another_is_read_by_its_own_values(route, model):
    def row(number):
        return {"carrier": "AA" * number, "distance": 1.5 * number, "hour": number}

    for number in range(1, 9):
        rows = [row(number)] * (1 + number % 3)
        call = route.decode(Kept(request(rows, id=str(number)).SerializeToString()))
        assert same(arrays(model, call), rows)


def test_numbers_alone_are_read_without_a_message_object(tmp_path, service, write_bundle):
    model = numbers_only(tmp_path)
    route = GrpcInferRoute(model, service)
    for rows in (1, 1, 3, 3, 1):
        message = messages()["ModelInferRequest"](model_name="numbers")
        expected = []
        for name, dtype, v2 in (("a", "<f4", "FP32"), ("b", "<i8", "INT64"), ("c", "<f8", "FP64")):
            values = np.arange(rows).astype(dtype) + len(expected)
            expected.append(values.tolist())
            message.inputs.add(name=name, datatype=v2, shape=[rows])
            message.raw_input_contents.append(values.tobytes())
        call = route.decode(Kept(message.SerializeToString()))
        assert [a.tolist() for a in model.columns.arrays([call.columns])] == expected
    short = message.SerializeToString()[:-1]
    with pytest.raises(ValueError, match="allowed: a whole message"):
        route.decode(Kept(short))


def numbers_only(path):
    """The sum of three columns of numbers."""
    from onnx import TensorProto, helper

    from drivetrain.core.bundle import Bundle, Manifest
    from drivetrain.core.graph import IR_VERSION, OPSET, Graph
    from drivetrain.core.schema import Field, Schema

    kinds = {"a": TensorProto.FLOAT, "b": TensorProto.INT64, "c": TensorProto.DOUBLE}
    nodes = [helper.make_node("Cast", [n], [f"{n}f"], to=TensorProto.FLOAT) for n in kinds]
    nodes.append(helper.make_node("Sum", [f"{name}f" for name in kinds], ["sum"]))
    values = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "sum",
        [values(name, kind, ["rows"]) for name, kind in kinds.items()],
        [values("sum", TensorProto.FLOAT, ["rows"])],
    )
    opset = [helper.make_opsetid("", OPSET)]
    proto = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opset)
    fields = (Field("a", "float32"), Field("b", "int64"), Field("c", "float64"))
    manifest = Manifest(
        name="numbers", inputs=Schema(fields), outputs=Schema((Field("sum", "float32"),))
    )
    bundle = Bundle.write(path / "numbers", Graph.from_proto(proto), manifest, {})
    return Model.load("numbers", Artefact(bundle.digest, bundle.path))


@given(st.lists(ROW, min_size=1, max_size=4), st.permutations(["late", "slot"]), st.integers(0, 2))
def test_an_answer_is_what_protobuf_would_write(model, service, rows, names, count):
    route = GrpcInferRoute(model, service)
    message = request(rows, id="seven")
    for name in names[:count]:
        message.outputs.add(name=name)
    call = route.decode(Kept(message.SerializeToString()))
    size = len(rows)
    outputs = [np.linspace(0, 1, size, dtype=np.float32), np.arange(size)]
    body, _, _ = route.encode(call, outputs)
    expected = messages()["ModelInferResponse"](
        model_name="tiny", model_version=model.version, id="seven"
    )
    for name in names[:count] or ["late", "slot"]:
        array = outputs[model.outputs.index(name)]
        expected.outputs.add(name=name, datatype={"late": "FP32", "slot": "INT64"}[name],
                             shape=array.shape)  # fmt: skip
        expected.raw_output_contents.append(array.tobytes())
    assert body == expected.SerializeToString()


def test_an_answer_in_a_stream_says_that_no_other_comes(model, service):
    route = StreamInferRoute(model, service)
    rows = [{"carrier": "AA", "distance": 1.0, "hour": 7}]
    call = route.decode(Kept(request(rows, id="a").SerializeToString()))
    body, _, _ = route.encode(call, [np.zeros(1, np.float32), np.zeros(1, np.int64)])
    found = messages()["ModelStreamInferResponse"].FromString(body)
    assert found.infer_response.parameters["triton_final_response"].bool_param
    assert found.infer_response.id == "a"
    assert found.SerializeToString(deterministic=True) == body


GOOD = [{"carrier": "AA", "distance": 1.0, "hour": 7}, {"carrier": "", "distance": 2.0, "hour": 8}]


def changed(change, **options):
    message = request(GOOD, **options)
    change(message)
    return message.SerializeToString()


def poked(number, **fields):
    def change(message):
        for name, value in fields.items():
            if name == "shape":
                message.inputs[number].shape[:] = value
            else:
                setattr(message.inputs[number], name, value)

    return change


def parameter(**values):
    def change(message):
        for name, value in values.items():
            kind = {int: "int64_param", str: "string_param", bool: "bool_param"}[type(value)]
            setattr(message.parameters[name], kind, value)

    return change


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (changed(poked(1, datatype="FP64")), ["input 'distance', datatype: found 'FP64'", "FP32"]),
        (changed(poked(1, shape=[3])), ["input 'distance', rows: found 3, allowed: 2"]),
        (changed(poked(0, shape=[])), ["input 'carrier', shape: found []"]),
        (changed(poked(0, shape=[-2])), ["input 'carrier', shape: found [-2]"]),
        (changed(poked(2, shape=[2, 2])), ["input 'hour', shape: found [2, 2]"]),
        (changed(poked(1, name="distence")), ["unknown input 'distence'", "'distance'"]),
        (changed(poked(1, name="hour", datatype="INT64")), ["input 'hour': found twice"]),
        (changed(lambda m: m.inputs.pop()), ["found no 'hour'"]),
        (changed(lambda m: m.inputs.clear()), ["inputs: found no 'carrier', 'distance', 'hour'"]),
        (changed(lambda m: m.raw_input_contents.pop()), ["raw_input_contents: found 2"]),
        (changed(lambda m: m.raw_input_contents.append(b"")), ["raw_input_contents: found 4"]),
        (changed(lambda m: m.raw_input_contents.__setitem__(1, b"abc")),
         ["input 'distance', binary data: found '3 bytes', allowed: 8"]),
        (changed(lambda m: m.raw_input_contents.__setitem__(0, b"\x01\0\0\0\xff\0\0\0\0")),
         ["input 'carrier'", "UTF-8"]),
        (changed(lambda m: m.inputs[0].contents.bytes_contents.append(b"")),
         ["input 'carrier': found contents and raw contents"]),
        (changed(lambda m: m.inputs[1].contents.fp32_contents.append(1), raw=False),
         ["input 'distance', fp32_contents: found '3 elements', allowed: 2"]),
        (changed(lambda m: m.inputs[1].contents.int64_contents.append(1), raw=False),
         ["input 'distance', contents: found", "allowed: fp32_contents"]),
        (changed(lambda m: m.inputs[0].contents.bytes_contents.__setitem__(0, b"\xff"), raw=False),
         ["input 'carrier', bytes_contents", "UTF-8"]),
        (changed(lambda m: m.outputs.add(name="lat")), ["unknown output 'lat'", "'late'"]),
        (changed(lambda m: [m.outputs.add(name="late") for _ in "ab"]),
         ["output 'late': found twice"]),
        (changed(parameter(timeout="soon")), ["parameter 'timeout': found 'soon'"]),
        (changed(parameter(timeout=-1)), ["parameter 'timeout': found -1"]),
        (changed(parameter(sequence_id=7)), ["parameter: found 'sequence_id'"]),
        (request(GOOD, id="x" * 300).SerializeToString(), ["id: found", "at most 256"]),
        (request(GOOD).SerializeToString() + b"\x0a\x04tiny", ["model_name: found twice"]),
        (request(GOOD).SerializeToString() + b"\x2a\x02\xff\xff", ["body:", "InferTensor"]),
        (request(GOOD).SerializeToString()[:-3], ["allowed: a whole message"]),
        (b"\x2a\x00" * 5000, ["more than 1008 fields"]),
    ],
)  # fmt: skip
def test_a_mistake_names_place_found_and_allowed(route, body, parts):
    route.decode(Kept(request(GOOD).SerializeToString()))  # what is alike is known by then
    with pytest.raises(ValueError) as caught:
        route.decode(Kept(body))
    for part in parts:
        assert part in str(caught.value)


def test_fields_of_a_later_protocol_are_passed_over(route, model):
    body = request(GOOD).SerializeToString() + b"\xc0\x3e\x07"
    assert same(arrays(model, route.decode(Kept(body))), GOOD)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_request_or_a_mistake(model, service, data):
    route = GrpcInferRoute(model, service)
    body = request(GOOD).SerializeToString()
    route.decode(Kept(body))
    for sent in (data, body[:30] + data, body + data, data + body):
        with suppress(ValueError):
            address(sent)
            call = route.decode(Kept(sent))
            assert all(len(column) == call.rows for column in call.columns)
        assert id_of(sent) in sent


@given(st.text(min_size=1, max_size=200), st.text(max_size=200))
def test_the_address_is_found_wherever_it_stands(name, version):
    message = messages()["ModelInferRequest"](model_name=name, model_version=version, id="x")
    body = message.SerializeToString()
    assert address(body) == (name, version)
    assert body[after_address(body) :] == b"\x1a\x01x"
    moved = b"\x1a\x01x" + body[: after_address(body)]
    assert (address(moved), after_address(moved)) == ((name, version), 0)


def test_the_sooner_of_time_out_and_deadline_counts(route):
    sent = Kept(changed(parameter(timeout=2_000_000)), deadline=None)
    assert route.decode(sent).deadline == pytest.approx(sent.received + 2)
    sent = Kept(changed(parameter(timeout=2_000_000)))
    sent.deadline = sent.received + 1
    assert route.decode(sent).deadline == sent.deadline


def test_rows_are_those_that_the_batch_would_have(route, model, tiny):
    call = route.decode(Kept(request(GOOD).SerializeToString()))
    _, outputs = model.run([call.columns])
    expected = tiny.predict(Batch.from_rows(GOOD, model.inputs))
    assert outputs[0].tolist() == expected["late"].tolist()


def test_a_message_that_is_refused_and_its_call_do_not_hold_each_other():
    calls = []

    def ask(exchange):
        exchange.on_gone = lambda: exchange
        calls.append(weakref.ref(exchange.on_gone))
        exchange.refuse(400, "no")

    stream = SimpleNamespace(
        client="", headers={}, target=b"", managed=False, deadline=None,
        send=lambda answer: None, release=lambda: None,
    )  # fmt: skip
    InferStream(stream, ask)
    gc.disable()
    try:
        stream.on_message(b"")
        assert calls[0]() is None
    finally:
        gc.enable()
