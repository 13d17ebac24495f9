"""The compiled part reads what the Python path reads, to the bit, and leaves it all the rest."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from compiled_part import INPUTS, OUTPUTS, compiled
from hypothesis import example, given
from hypothesis import strategies as st

from drivetrain.serve import native
from drivetrain.serve.execution.columns import Columns, _gather
from drivetrain.serve.execution.engine import Batching, Engine
from drivetrain.serve.execution.packed import Form, Packed
from drivetrain.serve.protocols.calls import Service
from drivetrain.serve.protocols.identity import RequestIds
from drivetrain.serve.protocols.rows import RowsRoute
from drivetrain.serve.telemetry.metrics import Metrics

MOST = 50

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
