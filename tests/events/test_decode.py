"""Values of messages as rows: what they become, and what is refused, whoever lies beside them."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.core.schema import Field, Schema
from drivetrain.events.topic.decode import BLOCK, ArrowStreams, Json, told

SCHEMA = Schema(
    (
        Field("n", "int64"),
        Field("x", "float64"),
        Field("s", "string"),
        Field("t", "timestamp"),
    )
)
DECODE = Json(SCHEMA, "topic 'made'")


def decoded(*values: bytes) -> list[dict[str, Any]]:
    found = DECODE(values)
    assert not found.refused
    return found.rows.to_pylist()


def test_an_object_is_a_row_and_an_absent_key_a_null() -> None:
    (row,) = decoded(b'{"n": 1, "s": "a", "other": [1, {"deep": true}]}')
    assert row == {"n": 1, "x": None, "s": "a", "t": None}


def test_a_time_with_a_zone_becomes_utc_beside_one_without() -> None:
    rows = decoded(
        b'{"t": "2026-11-22T08:00:00.250+02:00"}',
        b'{"t": "2026-11-22 06:00:00.25"}',
        b'{"t": "2026-11-22T06:00:00.250000Z"}',
    )
    assert len({row["t"] for row in rows}) == 1
    assert str(rows[0]["t"]) == "2026-11-22 06:00:00.250000"


def test_true_and_false_are_integers_where_integers_are_due() -> None:
    assert [row["n"] for row in decoded(b'{"n": true}', b'{"n": 2}', b'{"n": false}')] == [1, 2, 0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "allowed: one JSON object"),
        (b"  \n", "allowed: one JSON object"),
        (b"null", "allowed: one JSON object"),
        (b"[1]", "allowed: one JSON object"),
        (b'{"n": 1', "allowed: one JSON object"),
        (b'{"n": 1} {"n": 2}', "2 objects"),
        (b'{"n": 1}\n{"n": 2}', "2 objects"),
        (b'{"n": {}', "JSON parse error"),
        (b'{"n": "1"}', "changed from number to string"),
        (b'{"n": 1.5}', "1.5"),
        (b'{"n": 9223372036854775808}', "9223372036854775808"),
        (b'{"s": 1}', "changed from string to number"),
        (b'{"s": "\xff"}', "UTF8"),
        (b'{"t": "yesterday"}', "yesterday"),
        (b'{"s": "a\nb"}', "JSON parse error"),
        (b"\x00\x01\x02", "allowed: one JSON object"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason_and_its_neighbours_stay(
    value: bytes, reason: str
) -> None:
    before, behind = b'{"n": 1}', b'{"n": 2, "s": "b"}'
    found = DECODE([before, value, behind])
    assert [row["n"] for row in found.rows.to_pylist()] == [1, 2]
    assert found.origin.tolist() == [0, 2]
    assert list(found.refused) == [1]
    assert reason in found.refused[1]


def test_values_that_would_be_whole_together_are_refused_apart() -> None:
    values = [b'{"n": 1', b"}", b'{"n": 2}{"n": 3}']
    assert sorted(DECODE(values).refused) == [0, 1, 2]
    values = [b'{"s": {}', b"{}}", b'{"n": 2} {"n": 3}']
    assert sorted(DECODE(values).refused) == [0, 1, 2]


def test_white_space_around_and_within_a_value_is_none_of_its_content() -> None:
    rows = decoded(b' {"n":\n 1}\n', b'{"n": 2}', b'\t{\n"n"\n:\n3\n}')
    assert [row["n"] for row in rows] == [1, 2, 3]


def test_many_values_are_parsed_in_blocks_to_the_same_rows() -> None:
    values = [json.dumps({"n": n, "s": "x" * (n % 90)}).encode() for n in range(30_000)]
    assert sum(map(len, values)) > BLOCK
    found = DECODE(values)
    assert found.rows["n"].to_pylist() == list(range(30_000))
    values[17_000] = b"torn"
    values[29_999] = b'{"n": "29999"}'
    found = DECODE(values)
    assert sorted(found.refused) == [17_000, 29_999]
    assert len(found.rows) == 29_998
    assert (found.rows["n"].to_numpy() == found.origin).all()


def test_a_value_that_is_nested_without_end_is_refused_and_its_neighbour_stays() -> None:
    deep = b"[" * 30_000 + b"]" * 30_000
    found = DECODE(
        [b'{"n": "x", "x": ' + deep + b"}", b'{"n": 2}', b'{"n": 3, "y": ' + deep + b"}"]
    )
    assert [row["n"] for row in found.rows.to_pylist()] == [2, 3]
    assert list(found.refused) == [0]
    with pytest.raises(ValueError, match=r"'made': found .*recursion"):
        told([b'{"n": ' + deep + b"}"], Schema(()), "topic 'made'")


def test_a_value_may_be_larger_than_what_is_parsed_at_a_time() -> None:
    text = "x" * (3 * BLOCK)
    rows = decoded(b'{"n": 1}', json.dumps({"n": 2, "s": text}).encode(), b'{"n": 3}')
    assert [(row["n"], row["s"]) for row in rows] == [(1, None), (2, text), (3, None)]


VALUES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [
            b'{"n": 1}',
            b'{"n": true}',
            b'{"t": "2026-01-01T00:00:00Z"}',
            b'{"t": "2026-01-01T00:00:00"}',
            b'{"x": 1e5, "s": ""}',
            b'{"n": 1',
            b"}",
            b"{}",
            b'{"n": 2}{"n": 3}',
            b"",
        ]
    ),
)


@given(st.lists(VALUES, max_size=8))
def test_what_becomes_of_a_value_does_not_depend_on_its_neighbours(values: list[bytes]) -> None:
    together = DECODE(values)
    for number, value in enumerate(values):
        alone = DECODE([value])
        assert bool(alone.refused) == (number in together.refused)
        rows = together.rows.filter(pa.array(together.origin == number))
        assert alone.rows.equals(rows)


def test_many_that_do_not_fit_leave_the_others_in_their_order() -> None:
    kinds = [
        lambda n: b'{"n": %d}' % n,
        lambda n: b'{"n": true, "x": %d}' % n,
        lambda n: b'{"x": %d, "t": "2026-01-01T00:00:00Z"}' % n,
        lambda n: b'{"x": %d, "t": "2026-01-01T00:00:00"}' % n,
        lambda n: b'{"n": "%d"}' % n,
        lambda n: b'{"x": %d, "t": "no time"}' % n,
        lambda n: b'{"n": %d' % n,
        lambda n: b'[%d]' % n,
    ]  # fmt: skip
    values = [kinds[(n * n) % 11 % 8](n) for n in range(1100)]
    found = DECODE(values)
    fits = [n for n in range(1100) if (n * n) % 11 % 8 < 4]
    assert found.origin.tolist() == fits
    assert list(found.refused) == sorted(set(range(1100)) - set(fits))
    assert all(str(n) in why for n, why in found.refused.items() if values[n].startswith(b"["))
    rows = found.rows.to_pylist()
    assert [row["x"] if row["x"] is not None else row["n"] for row in rows] == fits


def test_columns_are_told_from_values_and_those_declared_are_kept() -> None:
    values = [b'{"a": 1, "b": null}', b'{"a": 2, "b": "x", "c": [1]}']
    found = told(values, Schema((Field("a", "float64"),)), "topic 'made'")
    assert {f.name: f.dtype for f in found} == {"a": "float64", "b": "string"}
    with pytest.raises(ValueError, match="'made': found no message"):
        told([], Schema(()), "topic 'made'")


def stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_an_arrow_stream_gives_all_of_its_rows_and_a_torn_one_none() -> None:
    two = stream(pa.table({"n": [1, 2], "s": ["a", "b"]}))
    none = stream(pa.table({"n": pa.array([], pa.int64()), "s": pa.array([], pa.string())}))
    other = stream(pa.table({"n": ["1"], "s": ["c"]}))
    absent = stream(pa.table({"n": [3]}))
    found = ArrowStreams(SCHEMA.select(("n", "s")), "topic 'made'")(
        [two, none, two[:-20], other, b"", absent, two]
    )
    assert found.rows["n"].to_pylist() == [1, 2, 1, 2]
    assert found.origin.tolist() == [0, 0, 6, 6]
    assert sorted(found.refused) == [2, 3, 4, 5]
    assert "unknown column 's'" in found.refused[5]


def test_an_arrow_stream_that_claims_what_it_does_not_hold_is_refused() -> None:
    three = stream(pa.table({"n": [7, 8, 9], "s": ["aa", "bb", "cc"]}))
    many = three.replace((3).to_bytes(8, "little"), (1 << 28).to_bytes(8, "little"))
    with pa.ipc.open_stream(many) as opened:
        assert opened.read_all().num_rows == 1 << 28
    indices = pa.array([0, 9, 1], pa.int8())
    beyond = pa.DictionaryArray.from_arrays(indices, pa.array(["a", "b"]), safe=False)
    found = ArrowStreams(SCHEMA.select(("n", "s")), "topic 'made'")(
        [many, three, stream(pa.table({"n": [1, 2, 3], "s": beyond})), three]
    )
    assert sorted(found.refused) == [0, 2]
    assert found.origin.tolist() == [1, 1, 1, 3, 3, 3]
