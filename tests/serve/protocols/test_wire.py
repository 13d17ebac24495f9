"""Protobuf's wire format by hand: held to protobuf itself, and to no crash on any bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.serve.protocols.messages import compile_messages
from drivetrain.serve.protocols.wire import (
    MalformedError,
    chunk,
    integer,
    read_varint,
    split,
    varint,
)

KINDS = compile_messages(
    "test.wire", "Pair: 1 name string, 2 parts *bytes, 3 count int64, 200 far string"
)
PAIR = KINDS["Pair"]


@given(st.integers(-(2**63), 2**64 - 1))
def test_an_integer_is_read_as_it_was_written(value):
    text = varint(value)
    assert read_varint(text + b"\xff", 0) == (value % 2**64, len(text))
    assert len(text) <= 10


@given(st.text(), st.lists(st.binary()), st.integers(-(2**63), 2**63 - 1), st.text())
def test_what_is_written_by_hand_is_what_protobuf_writes(name, parts, count, far):
    by_hand = b"".join(
        (
            chunk(1, name.encode()) if name else b"",
            *(chunk(2, part) for part in parts),
            integer(3, count) if count else b"",
            chunk(200, far.encode()) if far else b"",
        )
    )
    message = PAIR(name=name, parts=parts, count=count, far=far)
    assert by_hand == message.SerializeToString(deterministic=True)


@given(st.text(), st.lists(st.binary()), st.integers(-(2**63), 2**63 - 1), st.text())
def test_fields_lie_where_protobuf_finds_them(name, parts, count, far):
    data = PAIR(name=name, parts=parts, count=count, far=far).SerializeToString()
    found, ordered = split(data, (1, 2), len(parts) + 3)
    assert [data[start:end] for _, start, end in found[2]] == parts
    assert [data[start:end].decode() for _, start, end in found[1]] == ([name] if name else [])
    assert ordered == (not count and not far)
    for number, spans in found.items():
        for begin, start, end in spans:
            assert data[begin:end] == chunk(number, data[start:end])


@given(st.binary(max_size=60))
def test_any_bytes_are_fields_or_malformed(data):
    try:
        found, _ = split(data, (1, 2), 100)
    except MalformedError:
        return
    assert all(0 <= b < s <= e <= len(data) for spans in found.values() for b, s, e in spans)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x0a\x05abc", "a field of 5 bytes at byte 2 of 5"),
        (b"\x0a", "no end of a number"),
        (b"\x0a" + b"\xff" * 10, "no end of a number at byte 1"),
        (b"\x19abc", "the end within a field"),
        (b"\x0b", "wire type 3"),
        (b"\x00\x01", "numbered 0"),
        (b"\x0a\x00" * 5, "more than 4 fields"),
    ],
)
def test_what_is_no_message_is_said_to_be_none(data, message):
    with pytest.raises(MalformedError, match=message):
        split(data, (1,), 4)


def test_fields_that_are_not_known_are_passed_over():
    data = b"\x08\x96\x01" + chunk(1, b"a") + b"\x15abcd" + b"\x19abcdefgh" + chunk(9, b"x")
    found, ordered = split(data, (1,), 10)
    assert [data[start:end] for _, start, end in found[1]] == [b"a"]
    assert not ordered
