"""What suits so many processes on a machine's cores."""

import pytest

from drivetrain.serve.execution import batching
from drivetrain.serve.execution.batching import Batching


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_core_that_nobody_else_needs_takes_long_runs_sooner(workers, monkeypatch):
    def inline(cores):
        monkeypatch.setattr(batching, "cores", lambda: cores)
        return Batching.of(workers).inline_seconds

    assert inline(workers + 1) == Batching.inline_seconds
    assert inline(workers) > Batching.inline_seconds
    assert inline(1) == inline(workers)


def test_one_process_alone_uses_two_cores_for_one_version(monkeypatch):
    monkeypatch.setattr(batching, "cores", lambda: 4)
    assert [Batching.of(workers).runs for workers in (1, 2, 4)] == [2, 1, 1]
    monkeypatch.setattr(batching, "cores", lambda: 1)
    assert Batching.of(1).runs == 1
