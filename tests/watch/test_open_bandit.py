"""Real logs: those of Open Bandit (Saito et al. 2021) that ship inside of obp, beside obp itself.

They are under CC BY 4.0, installed when the tests run, and nothing of them is kept.
"""

import json
import os
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from drivetrain.core.batch import Batch
from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.core.schema import Field, Schema
from drivetrain.watch.estimates import Rounds, estimate
from drivetrain.watch.off_policy import OffPolicy
from drivetrain.watch.probes import evaluate

PACKAGES = ("obp==0.4.1", "mypy_extensions==1.2.0")
ACTIONS, PLACES = 80, 3


@pytest.fixture(scope="module")
def told(environment: Callable[..., Path]) -> dict[str, Any]:
    """The logs of two policies, the production policy, and what obp estimates of it."""
    python = environment("bandits", "--no-deps", *PACKAGES)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": sysconfig.get_path("purelib")}
    worker = Path(__file__).with_name("bandit_worker.py")
    command = [python, worker]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def bundles(told: dict[str, Any], tmp_path_factory: Any) -> dict[str, Bundle]:
    """Bundles that say how likely each action is: Thompson's policy, and all alike."""
    folder = tmp_path_factory.mktemp("bandits")
    alike = np.full((ACTIONS, PLACES), 1 / ACTIONS)
    policies = {"bts": np.array(told["policy"]), "random": alike}
    return {name: bundle_of(folder / name, policy) for name, policy in policies.items()}


def bundle_of(path: Path, policy: np.ndarray) -> Bundle:
    """A bundle of one policy ``[actions, places]``, whoever asks."""
    held = numpy_helper.from_array(policy.T[None].astype(np.float32), "held")
    tail = numpy_helper.from_array(np.array([PLACES, ACTIONS]), "tail")
    nodes = [
        helper.make_node("Shape", ["user"], ["rows"], name="rows"),
        helper.make_node("Concat", ["rows", "tail"], ["shape"], axis=0, name="shape"),
        helper.make_node("Expand", ["held", "shape"], ["policy"], name="policy"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "policy",
        [value("user", TensorProto.STRING, ["rows"])],
        [value("policy", TensorProto.FLOAT, ["rows", PLACES, ACTIONS])],
        [held, tail],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    manifest = Manifest(
        name="policy",
        inputs=Schema((Field("user", "string"),)),
        outputs=Schema((Field("policy", "float32", (PLACES, ACTIONS)),)),
    )
    return Bundle.write(path, Graph.from_proto(model), manifest, {})


def batch_of(log: dict[str, Any]) -> Batch:
    return Batch(
        {
            "user": np.array(log["user_feature_0"], object),
            "item": np.array(log["item_id"]),
            "place": np.array(log["position"]),
            "click": np.array(log["click"]),
            "pscore": np.array(log["propensity_score"]),
        }
    )


def measured(bundle: Bundle, log: dict[str, Any], **options: Any) -> dict[str, float]:
    whole = batch_of(log)
    probe = OffPolicy(
        reward="click", propensity="pscore", position="place", policy="policy", **options
    )
    parts = [whole.slice(start, start + 3000) for start in range(0, len(whole), 3000)]
    return {
        m.name.removeprefix("off_policy/"): m.value for m in evaluate(bundle, [probe], parts, "")
    }


@pytest.mark.slow
@pytest.mark.parametrize("log", ["random", "bts"])
def test_the_estimators_are_those_of_obp(told: dict[str, Any], log: str) -> None:
    rows = told["logs"][log]
    policy, expected = np.array(told["policy"]), np.array(told["expected"])
    action, place = np.array(rows["item_id"]), np.array(rows["position"]) - 1
    rounds = Rounds(
        reward=np.array(rows["click"], np.float64)[:, None],
        logged=np.array(rows["propensity_score"])[:, None],
        policy=policy[action, place][:, None],
        predicted=expected[action, place][:, None],
        expected=(policy * expected).sum(axis=0)[place][:, None],
    )
    found = estimate(rounds, switch=told["switch"], resamples=0)
    due = told["obp"][log]
    assert {name: found[name].value for name in due} == pytest.approx(due, abs=1e-9)


@pytest.mark.slow
def test_what_one_policy_earned_is_estimated_from_the_log_of_the_other(
    told: dict[str, Any], bundles: dict[str, Bundle]
) -> None:
    """The production policy, Bernoulli Thompson sampling, was also logged itself: the truth."""
    truth = np.mean(told["logs"]["bts"]["click"])
    found = measured(bundles["bts"], told["logs"]["random"], resamples=500, switch=20.0)
    for name in ("ips", "snips", "dr", "switch_dr"):
        assert found[f"{name}/low"] < truth < found[f"{name}/high"], name
    assert found["ips"] == pytest.approx(told["obp"]["random"]["ips"], abs=1e-9)
    assert found["snips"] == pytest.approx(told["obp"]["random"]["snips"], abs=1e-8)
    assert found["logged"] == np.mean(told["logs"]["random"]["click"])
    assert found["mean_weight"] == pytest.approx(1, abs=0.1)
    assert 0 < found["effective"] < found["rows"] == 10_000
    random = told["logs"]["random"]
    policy = np.array(told["policy"])[random["item_id"], np.array(random["position"]) - 1]
    assert found["uncovered"] == pytest.approx((policy == 0).mean())
    assert found["uncovered"] > 0, "what 20,000 draws never drew"
    assert found["largest"] == pytest.approx(np.max(told["policy"]) * ACTIONS, rel=0.05)


@pytest.mark.slow
def test_a_log_with_small_propensities_tells_less_and_says_so(
    told: dict[str, Any], bundles: dict[str, Bundle]
) -> None:
    alike = told["logs"]["bts"]
    back = measured(bundles["random"], alike, resamples=300)
    there = measured(bundles["bts"], told["logs"]["random"], resamples=300)
    assert back["effective"] < there["effective"] / 2
    assert back["largest"] > 10 * there["largest"]
    truth = np.mean(told["logs"]["random"]["click"])
    assert back["snips/low"] < truth < back["snips/high"]
    same = measured(bundles["random"], told["logs"]["random"], resamples=300)
    assert same["effective"] == pytest.approx(10_000)
    assert same["ips"] == pytest.approx(same["logged"], rel=1e-6)
    assert abs(same["lift"]) < (same["logged/high"] - same["logged/low"]) / 20


@pytest.mark.slow
def test_propensities_of_another_scale_are_refused(
    told: dict[str, Any], bundles: dict[str, Bundle]
) -> None:
    log = told["logs"]["random"]
    tenth = {**log, "propensity_score": [p / 10 for p in log["propensity_score"]]}
    words = r"mean of 1 / propensity: found 800\.0, allowed: 80 or less"
    with pytest.raises(ValueError, match=words):
        measured(bundles["bts"], tenth)
