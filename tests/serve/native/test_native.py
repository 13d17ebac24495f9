"""The compiled part reads what the Python path reads, to the bit, and leaves it all the rest."""

import http.client
import json
import math
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from drivetrain.core.bundle import Bundle, Manifest, digest_of
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.core.schema import Field, Schema
from drivetrain.serve import native
from drivetrain.serve.execution import bound as bounds
from drivetrain.serve.execution import columns as columns_module
from drivetrain.serve.execution.columns import Columns, _gather
from drivetrain.serve.execution.engine import Batching, Engine
from drivetrain.serve.execution.models import Artefact, Model
from drivetrain.serve.execution.packed import Form, Packed
from drivetrain.serve.protocols import rows as rows_module
from drivetrain.serve.protocols import values
from drivetrain.serve.protocols.calls import RequestIds, Service
from drivetrain.serve.protocols.rows import RowsRoute
from drivetrain.serve.server import Server, running
from drivetrain.serve.telemetry.metrics import Metrics

compiled = pytest.mark.skipif(
    native.compiled is None, reason="NOT TESTED: the compiled part was not built here"
)
INPUTS = Schema(
    (
        Field("x", "float32"),
        Field("n", "int64"),
        Field("größe", "float64"),
        Field("at", "timestamp"),
    )
)
OUTPUTS = Schema((Field("sum", "float32"), Field("pair", "float32", (2,)), Field("code", "int64")))
MOST = 50


def graph():
    """``sum = x + größe``, ``pair = [x, sum]`` and ``code``, which fails for ``n`` beyond 3."""
    tensor = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["größe"], ["size"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "size"], ["sum"]),
        helper.make_node("Unsqueeze", ["x", "one"], ["x1"]),
        helper.make_node("Unsqueeze", ["sum", "one"], ["sum1"]),
        helper.make_node("Concat", ["x1", "sum1"], ["pair"], axis=1),
        helper.make_node("Less", ["n", "zero"], ["below"]),
        helper.make_node("Where", ["below", "zero", "n"], ["place"]),
        helper.make_node("Gather", ["codes", "place"], ["coded"]),
        helper.make_node("Max", ["at", "zero"], ["moment"]),
        helper.make_node("Add", ["coded", "moment"], ["code"]),
    ]
    made = helper.make_graph(
        nodes,
        "numbers",
        [
            tensor("x", TensorProto.FLOAT, ["rows"]),
            tensor("n", TensorProto.INT64, ["rows"]),
            tensor("größe", TensorProto.DOUBLE, ["rows"]),
            tensor("at", TensorProto.INT64, ["rows"]),
        ],
        [
            tensor("sum", TensorProto.FLOAT, ["rows"]),
            tensor("pair", TensorProto.FLOAT, ["rows", 2]),
            tensor("code", TensorProto.INT64, ["rows"]),
        ],
        [
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("zero", TensorProto.INT64, [], [0]),
            helper.make_tensor("codes", TensorProto.INT64, [4], [10, 20, 30, 40]),
        ],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return Graph.from_proto(helper.make_model(made, ir_version=IR_VERSION, opset_imports=opsets))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    manifest = Manifest(name="numbers", inputs=INPUTS, outputs=OUTPUTS)
    return Bundle.write(tmp_path_factory.mktemp("numbers") / "bundle", graph(), manifest, {})


def in_python(monkeypatch):
    """From now on what is loaded goes without the compiled part."""
    monkeypatch.setattr(columns_module, "compiled", None)
    for module in (values, rows_module):
        monkeypatch.setattr(module, "float32_text", values.float32_in_python)
    monkeypatch.setitem(values._TEXT, "f", values.float32_in_python)
    monkeypatch.setattr(values, "compiled", None)


# -- reading ---------------------------------------------------------------------------------------

COLUMNS = Columns(INPUTS, [(name, ("rows",)) for name in INPUTS.names])


class Readings:
    """The plain rows route over the columns alone, by either path."""

    def __init__(self):
        metrics = Metrics()
        model = SimpleNamespace(
            name="numbers",
            version="one",
            inputs=INPUTS,
            outputs=list(OUTPUTS.names),
            columns=Columns(INPUTS, [(name, ("rows",)) for name in INPUTS.names]),
            bundle=SimpleNamespace(manifest=SimpleNamespace(outputs=OUTPUTS)),
        )
        model.columns._reader = None
        engine = Engine(Batching(queue_rows=MOST), metrics, None)
        service = Service(engine=engine, metrics=metrics, request_ids=RequestIds())
        self.columns = model.columns
        self.route = RowsRoute(model, service)

    def python(self, body):
        """The bytes of each column as the Python path has them, None if it refuses the body."""
        exchange = SimpleNamespace(body=body, headers={}, deadline=None, received=0.0)
        try:
            call = self.route.decode(exchange)
            self.route.check_rows(call.rows)
        except ValueError:
            return None
        return [array.tobytes() for array in self.columns.arrays([call.columns])]

    def compiled(self, body):
        """The same as the compiled part has them, None where it leaves the body to Python."""
        packed = COLUMNS.read(body, b"rows", MOST)
        return None if packed is None else [packed[i].tobytes() for i in range(len(packed))]


READINGS = Readings()

usual = st.fixed_dictionaries(
    {
        "x": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-99, 99),
        "n": st.none() | st.integers(-(10**18) + 1, 10**18 - 1),
        "größe": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "at": st.none() | st.integers(0, 10**16),
    }
).flatmap(lambda row: st.permutations(list(row.items())).map(dict))
indents = st.sampled_from([None, 0, 1])


@compiled
@given(st.lists(usual, min_size=1, max_size=4), st.booleans(), indents)
def test_what_clients_write_is_read_to_the_same_bits(rows, alone, indent):
    data = rows[0] if alone else {"rows": rows}
    body = json.dumps(data, indent=indent, ensure_ascii=False).encode()
    found = READINGS.compiled(body)
    assert found == READINGS.python(body)
    long = [v for row in rows for v in row.values() if type(v) is float and len(repr(v)) > 17]
    assert found is not None or long


ODD = """
    0 -0 -0.0 0.0 00 01 1. .5 1e 1e5 1E+5 1e-5 1e-400 1e400 -1e39 3.4028236e38 1e22 1e23 5e-324
    9007199254740993 9007199254740993.0 123456789012345678 1234567890123456789 0.1e1 0e5 -0e0
    9223372036854775807 -9223372036854775808 9223372036854775808 1e308 2.2250738585072011e-308
    0.000000000000000000001 1.00000005960464477539062 1.7976931348623159e308 3.0 3.5 true false
    null nul nulll NaN Infinity -Infinity - + "" "1" "2024-01-01T00:00:00" [] [1] {} "\\u0031" 1_0
    0x10 １ \x00 123456789012345678901234567890 0.1234567890123456789012345678901234567890
"""
odd = st.sampled_from(ODD.split())
keys = st.sampled_from(
    ['"x"', '"n"', '"größe"', '"at"', '"rows"', '"gr\\u00f6\\u00dfe"', '"z"', '""', "x", '"x']
)
space = st.sampled_from(["", " ", "\n\t", "\r", "\x0b", "\x00", "/**/"])


@st.composite
def odd_rows(draw):
    """The text of a row that may be anything, and often is nearly right."""
    names = ['"x"', '"n"', '"größe"', '"at"']
    if draw(st.booleans()):
        names = draw(st.permutations(names))
    if draw(st.integers(0, 3)) == 0:
        names = draw(st.lists(keys, max_size=6))
    gap = draw(space) if draw(st.integers(0, 3)) == 0 else ""
    plain = st.sampled_from(["1", "2.5", "null", "-3"])
    pairs = [f"{name}{gap}:{gap}{draw(st.one_of(plain, odd))}" for name in names]
    return f"{gap}{{{gap}{','.join(pairs)}{gap}}}{gap}"


bodies = st.one_of(
    odd_rows(),
    st.lists(odd_rows(), max_size=3).map(lambda rows: f'{{"rows":[{",".join(rows)}]}}'),
    st.lists(odd_rows(), max_size=2).map(lambda rows: f'{{"rows" : [ {" , ".join(rows)} ] }} '),
    odd_rows().map(lambda row: f'{{"rows":[{row}],"x":1}}'),
).map(str.encode)


@compiled
@given(bodies)
@example(b'{"x":1,"n":2,"gr\xc3\xb6\xc3\x9fe":3,"at":4}\x00')
@example(b'{"x":1,"n":2,"gr\xc3\xb6\xc3\x9fe":3,"at":4} 5')
@example(b'{"rows":[{"x":1,"n":2,"gr\xc3\xb6\xc3\x9fe":3,"at":4}]')
def test_what_the_compiled_part_takes_the_python_path_reads_the_same(body):
    found = READINGS.compiled(body)
    assert found is None or found == READINGS.python(body)


@compiled
@given(
    st.lists(usual, min_size=1, max_size=2),
    st.integers(0, 300),
    st.integers(0, 6),
    st.binary(max_size=6),
)
def test_damaged_bodies_are_read_the_same_or_left(rows, at, size, put):
    body = json.dumps({"rows": rows}, ensure_ascii=False).encode()
    body = body[:at] + put + body[at + size :]
    found = READINGS.compiled(body)
    assert found is None or found == READINGS.python(body)


@compiled
@given(st.binary(max_size=40))
def test_bytes_of_any_kind_are_left(body):
    assert READINGS.compiled(body) is None


@compiled
def test_more_rows_than_allowed_are_left_to_who_refuses_them():
    row = {"x": 1.5, "n": 1, "größe": 0.25, "at": None}
    for count, taken in ((MOST, True), (MOST + 1, False)):
        body = json.dumps({"rows": [row] * count}, ensure_ascii=False).encode()
        assert (READINGS.compiled(body) is not None) is taken


@compiled
@pytest.mark.parametrize(
    "arguments",
    [
        ((), "", ()),
        ((b"a",), "qq", (0, 8)),
        ((b"a",), "x", (0,)),
        ((b"a",), "q", (1,)),
        ((b"a",), "q", (-1,)),
        ((b"a", b"a"), "qq", (0, 8)),
        (("a",), "q", (0,)),
        ((b"a",), "q", ("0",)),
        ((b'a"b',), "q", (0,)),
        ((b"a\\b",), "q", (0,)),
        ((b"a\tb",), "q", (0,)),
    ],
)
def test_a_reader_of_other_columns_than_a_form_has_is_refused(arguments):
    with pytest.raises((ValueError, TypeError)):
        native.compiled.Reader(*arguments)


# -- joining ---------------------------------------------------------------------------------------


@compiled
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_requests_are_joined_as_python_joins_them(sizes, random):
    form = Form(INPUTS.fields)
    parts = [Packed(form, random.randbytes(form.row * rows), rows) for rows in sizes]
    ours, theirs = bytearray(form.row * sum(sizes)), bytearray(form.row * sum(sizes))
    COLUMNS._reader.gather([part.data for part in parts], ours, sum(sizes))
    _gather(form, parts, memoryview(theirs), sum(sizes))
    assert ours == theirs
    arrays = COLUMNS.arrays(parts)
    for number, field in enumerate(INPUTS):
        joined = np.concatenate([part[number] for part in parts])
        assert arrays[number].dtype == field.numpy
        assert arrays[number].tobytes() == joined.tobytes()
        assert joined.tobytes() == form.column(ours, number, sum(sizes)).tobytes()


@compiled
@pytest.mark.parametrize(("parts", "rows"), [([28], 2), ([28, 28], 1), ([27], 1), ([], 1)])
def test_what_does_not_fill_the_memory_is_refused(parts, rows):
    with pytest.raises(ValueError, match="rows"):
        COLUMNS._reader.gather([bytes(size) for size in parts], bytearray(28 * rows), rows)
    with pytest.raises(ValueError, match="rows"):
        COLUMNS._reader.gather([bytes(28 * 3)], bytearray(28 * 2), 3)


# -- text ------------------------------------------------------------------------------------------


@compiled
@given(st.floats(width=32) | st.integers(0, 2**32 - 1).map(lambda n: struct.pack("I", n)))
@example(-0.0)
@example(math.inf)
@example(math.nan)
@example(16777216.0)
@example(1e39)
def test_a_float_has_the_same_text(value):
    if isinstance(value, bytes):
        (value,) = struct.unpack("f", value)
    assert native.compiled.float32_text(value) == values.float32_in_python(value)


@compiled
@given(
    st.floats(2.0**-17, 2.0**24, width=32)
    | st.integers(-(2**24), 2**24).map(lambda n: n * 2.0**-30),
    st.booleans(),
)
@example(2.0**-13, True)  # halfway between two texts of nine digits
@example(float(np.nextafter(np.float32(1e-4), np.float32(0))), False)
@example(float(np.nextafter(np.float32(1e6), np.float32(0))), False)
@example(float(np.nextafter(np.float32(10), np.float32(0))), False)
def test_a_float_of_a_usual_size_has_the_same_text(value, below):
    value = float(np.float32(-value if below else value))
    assert native.compiled.float32_text(value) == values.float32_in_python(value)


@compiled
@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=6, max_size=6),
    st.sampled_from([1, 2, 3, 6]),
)
@example([0, 1 << 31, 0x7F800000, 0xFFC00000, 0x3F800000, 1], 2)
def test_rows_of_floats_have_the_texts_of_their_values(bits, width):
    matrix = np.array(bits, np.uint32).view(np.float32).reshape(-1, width)
    rows = [[values.float32_in_python(value) for value in row] for row in matrix.tolist()]
    assert values.nested(matrix) == [f"[{','.join(row)}]" for row in rows]
    assert values.nested(matrix[:, ::-1]) == [f"[{','.join(row[::-1])}]" for row in rows]


@compiled
@pytest.mark.parametrize("width", [-1, 0, 2, 2**62])
def test_rows_that_do_not_fill_the_memory_are_refused(width):
    with pytest.raises(ValueError, match="do not fill"):
        native.compiled.float32_rows(np.zeros(3, np.float32), width)


@compiled
@pytest.mark.parametrize("value", ["1", None])
def test_what_is_no_number_is_refused_as_python_refuses_it(value):
    with pytest.raises(TypeError):
        values.float32_in_python(value)
    with pytest.raises(TypeError):
        native.compiled.float32_text(value)


# -- serving ---------------------------------------------------------------------------------------

ROW = {"x": 0.1, "n": 1, "größe": 2.5, "at": 7}
ASKED = [
    ROW,
    {**ROW, "x": None, "n": None, "größe": None, "at": None},
    {**ROW, "x": 1e300},
    {**ROW, "at": "1970-01-01T00:00:01"},
    {**ROW, "n": 9},
    {**ROW, "n": 1.5},
    {**ROW, "n": "1"},
    {**ROW, "z": 1},
    {"x": 1.0},
    {"rows": [ROW, {**ROW, "n": 3}]},
    {"rows": [ROW, {**ROW, "n": True}]},
    {"rows": []},
    {"rows": [ROW] * 300},
    {"rows": [ROW] * 9000},
    [ROW],
]
V2 = {
    "inputs": [
        {"name": field.name, "datatype": field.v2, "shape": [2], "data": [value, value]}
        for field, value in zip(INPUTS, (0.5, 2, 1.5, 3), strict=True)
    ]
}


def as_json(data):
    """Without escapes, which the compiled part leaves to Python."""
    return json.dumps(data, ensure_ascii=False).encode()


def answers(bundle):
    """What a server says to each request, one by one and then many at once."""
    found = []
    with running(Server({"numbers": bundle.path}, port=0)) as url:
        host, port = url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)

        def ask(target, body, **headers):
            connection.request("POST", target, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

        found += [ask("/predict/numbers", as_json(body)) for body in ASKED]
        for body in (ROW, {**ROW, "größe": None}):
            instances = as_json({"instances": [body, ROW]})
            found.append(ask("/v1/models/numbers:predict", instances))
        found.append(ask("/v2/models/numbers/infer", as_json(V2)))
        binary = {"binary_data_output": True}
        for order in (INPUTS.fields, sorted(INPUTS.fields, key=lambda f: "qdf".index(code(f)))):
            arrays = [np.array([1, 2], field.numpy) for field in order]
            inputs = [
                {
                    "name": field.name,
                    "datatype": field.v2,
                    "shape": [2],
                    "parameters": {"binary_data_size": array.nbytes},
                }
                for field, array in zip(order, arrays, strict=True)
            ]
            head = json.dumps({"inputs": inputs, "parameters": binary}).encode()
            body = b"".join((head, *(array.tobytes() for array in arrays)))
            name = "Inference-Header-Content-Length"
            for _ in range(2):  # the second time its layout is known
                said = ask("/v2/models/numbers/infer", body, **{name: str(len(head))})
                found.append(said)
        connection.close()
    return found


def code(field):
    return Form((field,)).codes


@compiled
def test_a_server_says_the_same_with_and_without_the_compiled_part(bundle, monkeypatch):
    ours = answers(bundle)
    in_python(monkeypatch)
    theirs = answers(bundle)
    assert ours == theirs
    statuses = [status for status, _ in ours]
    assert statuses[:4] == [200] * 4
    assert statuses[4:9] == [400] * 5
    assert statuses[9:15] == [200, 200, 400, 200, 400, 400]  # a bool is an integer
    assert statuses[15:] == [200] * 7


def test_a_bound_run_gives_the_bits_of_a_plain_one(bundle):
    model = Model.load("numbers", Artefact(digest_of(bundle.path), bundle.path))
    random = np.random.default_rng(0)
    assert model.bound is not None
    for rows in (1, 2, 7, bounds.MOST_ROWS, 3):
        arrays = [
            random.normal(size=rows).astype(np.float32),
            random.integers(0, 4, rows),
            random.normal(size=rows),
            random.integers(0, 10**15, rows),
        ]
        model.columns.fill([arrays], model.bound.memory, rows)
        bound, (_, plain) = model.bound.run(rows), model.run([arrays])
        assert [a.tobytes() for a in bound] == [a.tobytes() for a in plain]
        assert [a.shape for a in bound] == [a.shape for a in plain]


def test_the_environment_leaves_the_compiled_part_out():
    text = "from drivetrain.serve import native; print(native.path, native.compiled)"
    done = subprocess.run(
        [sys.executable, "-c", text],
        env={native.SWITCH: "0", "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["python", "None"]
