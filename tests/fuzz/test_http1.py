"""The rules of ``http1.py`` over its seeds, over made inputs, and for a while under atheris."""

from pathlib import Path

import http1
import pytest
from fuzzing import check_by_atheris
from hypothesis import given, settings
from hypothesis import strategies as st

FRAGMENTS = (
    *http1.SEEDS,
    *(word.encode().decode("unicode_escape").encode("latin-1") for word in http1.WORDS),
    *(b"GET / HTTP/1.1\r\nHost: x\r\n", b"\r\n", b"5\r\nhello\r\n", b"hello", b"5", b"Host: x\r\n"),
)


@pytest.mark.parametrize("stream", http1.SEEDS)
def test_the_seeds_break_no_rule(stream: bytes):
    for data in http1.inputs(stream):
        http1.check(data)


@given(
    st.binary(min_size=4, max_size=4),
    st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=8), max_size=12),
)
@settings(max_examples=400)
def test_no_bytes_in_any_pieces_break_a_rule(plan: bytes, fragments: list[bytes]):
    http1.check(plan + b"".join(fragments))


@given(st.sampled_from(http1.SEEDS), st.data())
@settings(max_examples=200)
def test_no_byte_changed_in_a_request_breaks_a_rule(stream: bytes, data: st.DataObject):
    place = data.draw(st.integers(0, len(stream) - 1))
    byte = data.draw(st.binary(max_size=3))
    changed = stream[:place] + byte + stream[place + 1 :]
    for found in http1.inputs(changed):
        http1.check(found)


def test_a_rule_that_is_broken_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """The oracle itself: requests that h11 does not see, and answers that are no answers."""
    taken = http1.Taken(b"GET", b"/smuggled", b"")
    with pytest.raises(AssertionError, match="no whole request"):
        http1.compare([taken], b"")
    with pytest.raises(AssertionError, match="for h11"):
        http1.compare([taken], http1.SEEDS[0])
    with pytest.raises(AssertionError, match="h11 says"):
        http1.compare([taken], b"\0")
    for wrong in (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nA: b\n\r\n\r\n", b"200\r\n\r\n"):
        with pytest.raises(AssertionError):
            http1.answers(wrong, [])
    monkeypatch.setattr(http1.Server, "answer", lambda server: server.waiting.pop(0))
    with pytest.raises(AssertionError):
        http1.check(bytes(4) + http1.SEEDS[2])


@pytest.mark.slow
def test_a_fuzzer_breaks_no_rule(tmp_path: Path):
    pytest.importorskip("atheris", reason="atheris is for Linux only")
    check_by_atheris(Path(http1.__file__), tmp_path)
