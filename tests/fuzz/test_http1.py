"""The rules of ``http1.py`` over its seeds, over made inputs, and for a while under atheris."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FILE = Path(__file__).with_name("http1.py")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_http1", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


http1 = load()
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
    pytest.importorskip(
        "atheris", reason="atheris is not installed: pip install 'drivetrain[fuzz]'"
    )
    done = subprocess.run(
        [sys.executable, FILE, "-max_total_time=15", "-seed=1", "-verbosity=0"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(tmp_path.iterdir()) == [], "an input that broke a rule would lie here"
