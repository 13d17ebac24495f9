"""The rules of ``http2.py`` over its seeds, over made inputs, and for a while under atheris."""

from pathlib import Path

import http2
import pytest
from fuzzing import check_by_atheris
from hypothesis import given, settings
from hypothesis import strategies as st

FRAMES = st.builds(
    lambda kind, flags, number, payload: http2.frame(kind, flags, number, payload),
    st.integers(0, 11),
    st.sampled_from((0, 1, 4, 5, 8, 0x0C, 0x2D)) | st.integers(0, 255),
    st.sampled_from((0, 1, 1, 1, 3, 5, 7, 2)),
    st.sampled_from((http2.GET, http2.POST, http2.CALL, http2.STREAM, bytes(4), b"\0\0\0\7"))
    | st.binary(max_size=20),
)


@pytest.fixture(scope="module", autouse=True)
def loop():
    """The loop of all inputs is closed behind them."""
    yield
    http2.LOOP.close()


@pytest.mark.parametrize("stream", http2.SEEDS)
def test_the_seeds_break_no_rule(stream: bytes):
    for data in http2.inputs(stream):
        http2.check(data)


@given(
    st.binary(min_size=4, max_size=4),
    st.lists(st.sampled_from(http2.SEEDS) | FRAMES | st.binary(max_size=8), max_size=12),
)
@settings(max_examples=200)
def test_no_frames_in_any_pieces_break_a_rule(plan: bytes, fragments: list[bytes]):
    http2.check(plan + b"".join(fragments))


@given(st.sampled_from(http2.SEEDS), st.data())
@settings(max_examples=50)
def test_no_byte_changed_in_a_stream_breaks_a_rule(stream: bytes, data: st.DataObject):
    place = data.draw(st.integers(0, len(stream) - 1))
    byte = data.draw(st.binary(max_size=3))
    changed = stream[:place] + byte + stream[place + 1 :]
    for found in http2.inputs(changed):
        http2.check(found)


def test_a_rule_that_is_broken_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """The oracle itself: requests that h2 does not see, and answers that are no answers."""
    taken = {1: http2.Taken(b"GET", b"/smuggled", b"")}
    with pytest.raises(AssertionError, match="h2 does not see"):
        http2.compare(taken, http2.Answers(), b"")
    with pytest.raises(AssertionError, match="for h2"):
        http2.compare(taken, http2.Answers(), http2.SEEDS[0])
    with pytest.raises(AssertionError, match="was lost"):
        http2.compare({}, http2.Answers(), http2.SEEDS[0])
    ok = http2.frame(http2.HEADERS, http2.END, 1, b"\x88")
    for wrong in (ok * 2, ok + http2.frame(http2.DATA, 0, 1, b"x"), b"\0\0\2" + ok[3:]):
        with pytest.raises((AssertionError, http2.hpack.HPACKError)):
            http2.Answers().read(wrong, 1 << 14)
    monkeypatch.setattr(http2.Server, "answer", lambda server: server.waiting.pop(0))
    with pytest.raises(AssertionError):
        http2.check(bytes(4) + http2.SEEDS[1])


@pytest.mark.slow
def test_a_fuzzer_breaks_no_rule(tmp_path: Path):
    pytest.importorskip("atheris", reason="atheris is for Linux only")
    check_by_atheris(Path(http2.__file__), tmp_path)
