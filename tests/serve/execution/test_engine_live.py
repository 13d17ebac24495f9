"""Runs of a model with live tensors: each is fed one moment and lets go of it."""

import math

import numpy as np
import pytest
from doubling import Doubling, Noted, drive

from drivetrain.serve.execution.live import Moment
from drivetrain.serve.execution.models import Cost


class Holding:
    """Live tensors whose moments are counted."""

    def __init__(self, fails=False):
        self.fails, self.begun, self.ended, self.fed = fails, 0, 0, []

    def __call__(self, arrays):
        if self.fails:
            raise RuntimeError("nothing was learnt")
        self.begun += 1
        return Moment({"row": arrays[0] * 10}, {"whole": np.ones(3)}, self._release)

    def _release(self):
        self.ended += 1


def learnt(tasks, seconds=1e-6, live=None, gate=None):
    """The fates of tasks of a model with live tensors."""
    model = tasks[0].model
    model.cost, model.live, model.gate = Cost(seconds, seconds, 8), live, gate
    infer = model.infer

    def fed(feeds):
        model.live.fed.append({n: a.tolist() for n, a in feeds.items() if n != "once"})
        return infer(feeds)

    model.infer = fed

    drive(model, tasks)


@pytest.mark.parametrize("seconds", [1e-6, 1.0])
def test_a_run_is_fed_one_moment_and_holds_it_until_it_has_ended(seconds):
    model, live = Doubling(), Holding()
    tasks = [Noted(model, [float(n)]) for n in range(3)]
    learnt(tasks, seconds, live)
    assert live.fed == [{"row": [0.0, 10.0, 20.0], "whole": [1.0] * 3}]
    assert (live.begun, live.ended) == (1, 1)


@pytest.mark.parametrize("seconds", [1e-6, 1.0])
def test_runs_that_fail_let_go_of_their_moment_and_each_alone_is_fed_its_own_rows(seconds):
    model, live = Doubling(), Holding()
    tasks = [Noted(model, [1.0]), Noted(model, [13.0]), Noted(model, [3.0, 4.0])]
    learnt(tasks, seconds, live)
    assert [fed["row"] for fed in live.fed] == [
        [10.0, 130.0, 30.0, 40.0], [10.0], [130.0], [30.0, 40.0],
    ]  # fmt: skip
    assert isinstance(tasks[1].fate, RuntimeError)
    assert (live.begun, live.ended) == (1, 1)


def test_requests_that_nobody_waits_for_hold_no_moment_and_one_that_is_not_had_fails_them():
    model, live = Doubling(), Holding()
    late = Noted(model, [1.0], deadline=-math.inf)
    learnt([late], live=live)
    assert (live.begun, live.ended) == (0, 0)
    model, live = Doubling(), Holding(fails=True)
    task = Noted(model, [1.0])
    learnt([task], live=live)
    assert "nothing was learnt" in str(task.fate)
