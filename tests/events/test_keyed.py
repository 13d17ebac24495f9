"""States of keys in files are those that were written last, however files were merged."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.key_states import KeyStates
from drivetrain.events.windowed.keyed import Keyed, divided

HALVES = st.sampled_from((1, 2, 3, 2**63, 2**64 - 1))
KEYS = st.tuples(HALVES, HALVES)
TRACKS = 2
Write = dict[tuple[int, tuple[int, int]], bytes]
writes = st.lists(
    st.dictionaries(st.tuples(st.integers(0, TRACKS - 1), KEYS), st.binary(min_size=1)), max_size=8
)


def hashes(keys: list[tuple[int, int]]) -> np.ndarray:
    return np.array(keys, np.uint64).reshape(-1, 2)


@settings(max_examples=40)
@given(writes)
def test_what_was_written_last_is_found(written: list[Write]) -> None:
    known: Write = {}
    with TemporaryDirectory() as folder:
        held = Keyed(Path(folder))
        for write in written:
            tracks = [[(key, s) for (t, key), s in write.items() if t == n] for n in range(TRACKS)]
            held = held.add([(hashes([k for k, _ in one]), [s for _, s in one]) for one in tracks])
            known |= write
        every = [(a, b) for a in (1, 2, 3, 2**63, 2**64 - 1) for b in (0, 1, 2, 3, 2**64 - 1)]
        for track in range(TRACKS):
            due = [known.get((track, key), b"") for key in every]
            assert held.find(track, hashes(every)) == due
        whole = held.states(TRACKS)
    found = {
        (track, tuple(key)): state
        for track, (keys, states) in enumerate(whole)
        for key, state in zip(keys.tolist(), states, strict=True)
    }
    assert found == known
    assert sum(len(states) for _, states in whole) == len(known)


def test_files_stay_few_and_small_ones_leave_large_ones_alone(tmp_path: Path) -> None:
    held = Keyed(tmp_path).add([(hashes([(n, n) for n in range(1, 5000)]), [b"x" * 50] * 4999)])
    (large,) = held.files
    for n in range(100):
        held = held.add([(hashes([(n + 1, n + 1)]), [b"%d" % n])])
        assert held.files[0] == large
        assert len(held.files) <= 10
    assert held.find(0, hashes([(7, 7), (200, 200)])) == [b"6", b"x" * 50]
    assert held.add([(hashes([]), [])]) is held


def test_each_key_belongs_to_one_part() -> None:
    keys = hashes([(n, n * n) for n in range(100)])
    states = KeyStates(0, keys, [b"%d" % n for n in range(100)])
    parts = divided(states, 3)
    assert sorted(int(blob) for _, blobs in parts for blob in blobs) == list(range(100))
    assert all(keys[int(b)].tolist() == k.tolist() for h, bs in parts for k, b in zip(h, bs))  # noqa: B905
