"""Statistics of versions: parts that add up, over requests and over processes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.serve.execution.statistics import NAME, Tally, model_statistics

SPAN = st.integers(0, 2**20).map(lambda n: n / 2**20)  # sums of these are exact
RUN = st.tuples(st.integers(1, 5), st.integers(1, 5000), *[SPAN] * 5)


def count(tally, requests, rows, decode, wait, join, infer, write):
    begun = 1000.0 + decode + wait
    fed = begun + join
    inferred = fed + infer
    tally.ran(
        *(requests, requests * rows, requests * 1000.0, requests * (1000.0 + decode)),
        *(begun, fed, inferred, inferred + write),
    )


def durations(parts):
    return {name: part["ns"] / 1e9 for name, part in parts.items()}


@given(RUN)
def test_a_run_counts_for_each_of_its_requests(run):
    requests, rows, decode, wait, join, infer, write = run
    tally = Tally()
    count(tally, *run)
    found = tally.json("a", "1")
    assert (found["inference_count"], found["execution_count"]) == (requests * rows, 1)
    seconds = durations(found["inference_stats"])
    assert seconds["queue"] == pytest.approx(requests * wait, abs=2e-9)
    assert seconds["compute_input"] == pytest.approx(requests * (decode + join), abs=2e-9)
    assert seconds["compute_infer"] == pytest.approx(requests * infer, abs=2e-9)
    assert seconds["compute_output"] == pytest.approx(requests * write, abs=2e-9)
    whole = requests * (decode + wait + join + infer + write)
    assert seconds["success"] == pytest.approx(whole, abs=2e-9)
    (batch,) = found["batch_stats"]
    size = batch["batch_size"]
    assert size == requests * rows or (size >= 256 and size <= requests * rows < 2 * size)
    assert batch["compute_infer"]["ns"] == pytest.approx(infer * 1e9, abs=2)


@given(st.lists(RUN, max_size=8), st.lists(RUN, max_size=8), st.lists(SPAN, max_size=4))
def test_what_two_processes_counted_is_what_one_would_have(ours, theirs, failed):
    one, two, both = Tally(), Tally(), Tally()
    for tally, runs in ((one, ours), (two, theirs), (both, ours + theirs)):
        for run in runs:
            count(tally, *run)
    for seconds in failed:
        two.failed(seconds)
        both.failed(seconds)
    others = [{NAME: [(("a", "1"), two.numbers()), (("b", "1"), two.numbers())]}]
    own = {("a", "1"): one.numbers(), ("a", "0"): two.numbers()}
    (found,) = model_statistics([("a", "1")], own, others)["model_stats"]
    expected = both.json("a", "1")
    # When the last run ended is told relative to now, and sums in another order round otherwise.
    assert abs(found.pop("last_inference") - expected.pop("last_inference")) <= 1000
    assert found == rounded(expected, found)


def rounded(expected, found):
    """``expected`` with the nanoseconds of ``found`` where they differ by a rounding."""
    if isinstance(expected, dict):
        return {key: rounded(value, found[key]) for key, value in expected.items()}
    if isinstance(expected, list):
        return [rounded(*pair) for pair in zip(expected, found, strict=True)]
    return found if isinstance(expected, int) and abs(expected - found) <= 20 else expected


def test_what_nobody_has_asked_is_told_with_zeros():
    (found,) = model_statistics([("a", "1")], {})["model_stats"]
    assert found["last_inference"] == 0
    assert found["batch_stats"] == []
    assert set(found["inference_stats"]) == {
        *("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"),
        *("cache_hit", "cache_miss"),
    }


def test_the_sizes_of_runs_that_are_told_apart_are_bounded():
    tally = Tally()
    for rows in range(1, 100_000, 7):
        count(tally, 1, rows, *[0.0] * 5)
    for rows in range(1, 257):
        count(tally, 1, rows, *[0.0] * 5)
    assert len(tally.batches) < 270
