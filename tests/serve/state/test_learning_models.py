"""Where a graph that learns can be served, and what of it is live."""

import films
import numpy as np
import pytest
from learnt import SEVERAL, graph_of, offline

from drivetrain.core.learner import NEW, Learner
from drivetrain.serve.execution.live import Learning
from drivetrain.serve.execution.loading import Loader
from drivetrain.serve.execution.models import Model
from drivetrain.serve.execution.weights import Weights
from drivetrain.serve.state.states import Keeping, States
from drivetrain.serve.telemetry.metrics import Metrics


def test_what_learns_is_one_process_own(one, serve):
    model = Model("films", one, Loader())
    for keeping, processes, found in [
        (Keeping(), 2, "2 workers"),
        (Keeping(place="redis://127.0.0.1:1/0"), 1, "state in Redis"),
    ]:
        states = States(keeping, processes, Metrics(), 100)
        with pytest.raises(ValueError, match=f"learns while it is served and {found}, allowed"):
            states.check(model)


def test_mapped_weights_leave_live_tensors_live(one, tmp_path):
    weights = Weights(tmp_path, least=0)
    try:
        mapped, plain = (
            Model("films", one, Loader(weights=weights)),
            Model("films", one, Loader()),
        )
        learner = offline(one, films.rows(50, seed=11))
        asked = np.array(SEVERAL, object)
        fed = {**learner.feeds(asked)}
        assert mapped._session.live == plain._session.live != frozenset()
        assert mapped.bound is None
        for live in ({}, fed):
            found = [model.run([[asked]], live)[1] for model in (mapped, plain)]
            for one_of, other in zip(*found, strict=True):
                np.testing.assert_array_equal(one_of, other)
        assert not np.array_equal(plain.run([[asked]], fed)[1][0], plain.run([[asked]])[1][0])
    finally:
        weights.close()


def test_a_placement_that_would_compile_live_tensors_in_is_refused(one):
    with pytest.raises(ValueError, match=r"does not take this graph: .*learner/items.* change"):
        Loader(place="openvino").session(one)
    assert Loader(place="auto").session(one).placement == "cpu"


def test_a_graph_without_a_learner_is_not_read_for_one(tiny, monkeypatch):
    read = []
    monkeypatch.setattr(type(tiny), "read", lambda self, name: read.append(name))
    for live in (frozenset(), frozenset({"some/table"})):
        assert Learning.of(tiny, live) is None
    assert not read


def test_new_items_are_all_that_is_copied_of_text(one):
    learner = Learner.of(graph_of(one))
    texts = {n: a for n, a in learner.tensors().items() if a.dtype == object}
    assert [name.endswith(NEW) for name in texts] == [True]
