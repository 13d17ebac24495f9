"""JSON with NaN and Infinity: their floats, and all else as strict as JSON is."""

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.serve.protocols.constants import decode

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=9)
    | st.sampled_from(["NaN", 'a"NaN', "\\", '\\"Infinity', "-Infinity"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)  # fmt: skip


@given(VALUES, st.booleans())
def test_what_python_writes_is_read_back(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert repr(decode(text)) == repr(value)
    assert repr(decode(memoryview(text))) == repr(value)


@pytest.mark.parametrize(
    "text",
    [
        b"[NaN", b"NaNs", b"[1NaN]", b"[NaN1]", b"[-NaN]", b"[+Infinity]", b"[nan]", b"[NaN NaN]",
        b"{NaN: 1}", b'["\\ud800", NaN]', b"\xef\xbb\xbf[NaN]", b"[NaN, 1e999]", b"[NaN, 01]",
        b'["NaN', b'[NaN, "a\\', b"[NaN]" * 2, b"[" * 100_000 + b"NaN", b'[NaN, "\xff"]',
    ],
)  # fmt: skip
def test_anything_else_that_is_no_json_is_refused(text):
    with pytest.raises((msgspec.MsgspecError, ValueError, RecursionError)):
        decode(text)


def test_an_error_names_the_place_in_what_was_sent():
    with pytest.raises(msgspec.DecodeError, match="byte 16"):
        decode(b"[NaN, -Infinity ?]")


def test_strings_that_do_not_end_take_no_time_to_tell():
    """A reader that tried each of the quotes anew would read 10 GB."""
    with pytest.raises(msgspec.DecodeError):
        decode(b'[NaN, "' + b'\\"' * 100_000)


def test_infinities_have_their_signs():
    assert decode(b"[Infinity,-Infinity]") == [math.inf, -math.inf]
