"""The inputs of V2 in JSON: what the compiled part takes is what the Python path makes of it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from compiled_part import INPUTS, OUTPUTS, compiled
from hypothesis import example, given
from hypothesis import strategies as st

from drivetrain.serve.execution.columns import Columns
from drivetrain.serve.execution.engine import Batching, Engine
from drivetrain.serve.execution.packed import Packed
from drivetrain.serve.protocols.calls import Service
from drivetrain.serve.protocols.identity import RequestIds
from drivetrain.serve.protocols.v2 import InferRoute
from drivetrain.serve.telemetry.metrics import Metrics

MOST = 50
VALUES = {
    "INT64": st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9),
    "FP32": st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
    "FP64": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9),
}


class Reading:
    """The route of V2 over the columns alone, by one of the paths."""

    def __init__(self, compiled):
        metrics = Metrics()
        columns = Columns(INPUTS, [(name, ("rows",)) for name in INPUTS.names])
        if not compiled:
            columns._reader = None
        model = SimpleNamespace(
            name="numbers",
            version="one",
            inputs=INPUTS,
            outputs=list(OUTPUTS.names),
            columns=columns,
            bundle=SimpleNamespace(manifest=SimpleNamespace(outputs=OUTPUTS)),
        )
        engine = Engine(Batching(queue_rows=MOST), metrics, None)
        service = Service(engine=engine, metrics=metrics, request_ids=RequestIds())
        self.columns = columns
        self.route = InferRoute(model, service)

    def __call__(self, body):
        """The bytes of each column and what else is asked, or the error; and by which path."""
        exchange = SimpleNamespace(body=body, headers={}, deadline=None, received=0.0)
        try:
            call = self.route.decode(exchange)
            self.route.check_rows(call.rows)
        except ValueError as error:
            return str(error), False
        arrays = self.columns.arrays([call.columns])
        asked = (call.rows, call.deadline, call.options.id, call.options.outputs)
        return ([array.tobytes() for array in arrays], asked), type(call.columns) is Packed


QUICKLY, SLOWLY = Reading(True), Reading(False)


def same(body):
    """Have both paths read a body; whether the compiled part took it."""
    found, taken = QUICKLY(body)
    expected, by_python = SLOWLY(body)
    assert found == expected
    assert not by_python
    return taken


def inputs(values):
    """One tensor for each column, ``values`` for all its rows."""
    return [
        {"name": field.name, "datatype": field.v2, "shape": [len(column)], "data": column}
        for field, column in zip(INPUTS, values, strict=True)
    ]


@st.composite
def usual(draw):
    """The inputs of a request, in any order, their keys in any that has the values last."""
    rows = draw(st.integers(1, 4))
    made = [draw(st.lists(VALUES[f.v2], min_size=rows, max_size=rows)) for f in INPUTS]
    found = draw(st.permutations(inputs(made)))
    keys = (*draw(st.permutations(["name", "datatype", "shape"])), "data")
    if draw(st.booleans()):
        found = [{**tensor, "shape": [rows, 1]} for tensor in found]
    return [{key: tensor[key] for key in keys} for tensor in found]


PLAIN = inputs([[1] for _ in INPUTS])
MORE = [
    {},
    {"id": "mine"},
    {"parameters": {"timeout": 5000}},
    {"outputs": [{"name": OUTPUTS.names[0], "parameters": {"binary_data": True}}]},
]


@compiled
@given(usual(), st.sampled_from(MORE), st.booleans(), st.sampled_from([None, 0, 2]))
def test_what_clients_write_is_read_to_the_same_bits(tensors, more, before, indent):
    asked = {**more, "inputs": tensors} if before else {"inputs": tensors, **more}
    same(json.dumps(asked, indent=indent, ensure_ascii=False).encode())


@compiled
@pytest.mark.parametrize("more", MORE)
def test_the_usual_is_read_by_the_compiled_part(more):
    two = inputs([[1, 2], *([3, None] for _ in INPUTS.names[1:])])
    for tensors in (PLAIN, two, PLAIN[::-1]):
        assert same(json.dumps({"inputs": tensors, **more}, ensure_ascii=False).encode())
    assert same(json.dumps({"id": "a", "inputs": PLAIN}, ensure_ascii=False).encode())


def changed(number=0, **keys):
    found = [dict(tensor) for tensor in PLAIN]
    found[number].update(keys)
    return {"inputs": found}


ODD = {
    "a column is missing": {"inputs": PLAIN[1:]},
    "one is there twice": {"inputs": [*PLAIN, PLAIN[0]]},
    "one is there in the place of another": {"inputs": [*PLAIN[1:], PLAIN[1]]},
    "none of the columns": changed(name="other"),
    "another datatype": changed(datatype="BYTES"),
    "no rows": changed(shape=[0], data=[]),
    "more rows than values": changed(shape=[2]),
    "fewer rows than values": changed(shape=[1], data=[1, 2]),
    "other rows than the others": changed(1, shape=[2], data=[1, 2]),
    "two values a row": changed(shape=[1, 2], data=[1, 2]),
    "no dimension": changed(shape=[]),
    "a dimension that is no integer": changed(shape=[1.0]),
    "nested values": changed(shape=[1, 1], data=[[1]]),
    "a text": changed(data=["1"]),
    "true": changed(data=[True]),
    "parameters": changed(parameters={}),
    "binary data": changed(data=None, parameters={"binary_data_size": 8}),
    "an unknown key": changed(other=1),
    "too many rows": {"inputs": inputs([[1] * (MOST + 1) for _ in INPUTS])},
    "more rows than the body has bytes": changed(shape=[999_999_999]),
    "inputs that are none": {"inputs": 5},
    "an id that is none": {"id": 5, "inputs": PLAIN},
    "outputs that are none": {"inputs": PLAIN, "outputs": 5},
    "an unknown output": {"inputs": PLAIN, "outputs": [{"name": "other"}]},
    "a timeout that is none": {"inputs": PLAIN, "parameters": {"timeout": "soon"}},
}


@compiled
@pytest.mark.parametrize("odd", ODD)
def test_what_is_odd_is_answered_as_python_answers_it(odd):
    same(json.dumps(ODD[odd], ensure_ascii=False).encode())


TEXT = json.dumps({"id": "a", "inputs": PLAIN, "parameters": {}}, ensure_ascii=False).encode()


@compiled
@given(
    st.integers(0, len(TEXT)),
    st.integers(0, 8),
    st.binary(max_size=4)
    | st.sampled_from([b"[", b"]", b"{", b"}", b",", b'"', b"\\", b"1", b" "]),
)
@example(len(TEXT), 0, b"\x00")
@example(len(TEXT), 0, b" ")
@example(len(TEXT) - 1, 1, b',"inputs":[]}')
@example(len(TEXT) - 1, 1, b',"inputs":5}')
@example(len(TEXT) - 1, 1, b',"id":"b"}')
@example(len(TEXT) - 1, 1, b',"\\u0069nputs":[]}')
def test_damaged_bodies_are_read_the_same(at, size, put):
    same(TEXT[:at] + put + TEXT[at + size :])


@compiled
def test_inputs_that_are_there_twice_are_the_last_ones():
    other = inputs([[2] for _ in INPUTS])
    first, second = (json.dumps(t, ensure_ascii=False).encode() for t in (PLAIN, other))
    body = b'{"inputs":%b,"inputs":%b}' % (first, second)
    assert not same(body)
    (columns, _), _ = QUICKLY(body)
    assert columns[0] == np.array([2], INPUTS.fields[0].numpy).tobytes()


@compiled
def test_no_part_of_a_body_is_taken_for_the_whole():
    for end in range(len(TEXT)):
        same(TEXT[:end])
