"""Heads are known again, and answers written, as Python does it."""

import pytest
from compiled_part import compiled
from hypothesis import example, given
from hypothesis import strategies as st

from drivetrain.serve import native
from drivetrain.serve.transport.http1_answer import wire_in_python
from drivetrain.serve.transport.repeated import end_in_python

BEFORE = b"POST /p HTTP/1.1\r\nContent-Length: "
BEHIND = b"\r\nHost: h\r\n\r\n"
digits = st.integers(0, 40).map(lambda n: b"%d" % n) | st.binary(max_size=12)
pieces = st.sampled_from([BEFORE, BEHIND, b"4", b"04", b"4 ", b"+4", b"\r\n", b"", b"body"])


@compiled
@given(
    st.tuples(st.just(BEFORE), digits, st.just(BEHIND), st.binary(max_size=40)).map(b"".join)
    | st.lists(pieces, max_size=6).map(b"".join)
)
@example(BEFORE + b"4" + BEHIND + b"body")
@example(BEFORE + b"04" + BEHIND + b"body")
@example(BEFORE + b"0" + BEHIND)
@example(BEFORE + BEHIND)
@example(BEFORE + b"999999999" + BEHIND)
@example(BEFORE + b"1000000004" + BEHIND + b"body")
@example(BEFORE + b"18446744073709551620" + BEHIND + b"body")
@example(BEFORE + b"-4" + BEHIND + b"body")
@example(BEFORE[:-1])
@example(b"")
def test_a_head_is_known_where_python_knows_it(data):
    head = native.compiled.Head(BEFORE, BEHIND)
    assert head.end(data) == end_in_python(BEFORE, BEHIND, data)


@compiled
@given(st.lists(st.binary(max_size=30), min_size=5, max_size=5), st.integers(0, 2**40))
@example([b"", b"", b"", b"", b""], 0)
def test_an_answer_has_the_same_bytes(parts, length):
    assert native.compiled.wire(*parts, length) == wire_in_python(*parts, length)


@compiled
def test_what_is_no_bytes_is_refused():
    with pytest.raises(TypeError):
        native.compiled.Head("a", b"b")
    with pytest.raises(TypeError):
        native.compiled.Head(b"a", b"b").end("ab")
    with pytest.raises(TypeError):
        native.compiled.wire(b"", b"", b"", b"", "x", 1)
    with pytest.raises(TypeError):
        native.compiled.wire(b"", b"", b"")
    with pytest.raises(ValueError, match="less than 0"):
        native.compiled.wire(b"", b"", b"", b"", b"", -1)
