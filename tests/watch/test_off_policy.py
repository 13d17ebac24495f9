"""The probe of policies on logs: what it asks a bundle, what it refuses, and what it says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from drivetrain.core.batch import Batch
from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.catalogue import COUNTS, ITEMS
from drivetrain.core.describe import describe
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.watch.off_policy import OffPolicy
from drivetrain.watch.probes import declared, evaluate

Array = np.ndarray[Any, Any]
KIND = {"int64": TensorProto.INT64, "string": TensorProto.STRING, "float32": TensorProto.FLOAT}
VALUE = helper.make_tensor_value_info


def bundle_of(
    path: Path,
    nodes: list[Any],
    held: dict[str, Array],
    outputs: Sequence[Field],
    inputs: Sequence[Field] = (Field("user", "int64"),),
) -> Bundle:
    """A bundle of some nodes."""
    graph = helper.make_graph(
        nodes,
        "policy",
        [VALUE(f.name, KIND[f.dtype], ["rows"]) for f in inputs],
        [VALUE(f.name, KIND[f.dtype], ["rows", *f.shape]) for f in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    manifest = Manifest(name="policy", inputs=Schema(tuple(inputs)), outputs=Schema(tuple(outputs)))
    return Bundle.write(path, Graph.from_proto(model), manifest, {})


def listing(path: Path, lists: Array, **held: Array) -> Bundle:
    """A bundle that answers a row of ``lists`` for the user of that number."""
    text = lists.dtype == object
    values, places = np.unique(lists, return_inverse=True)
    held = {"values": values, "lists": places.reshape(lists.shape).astype(np.int64), **held}
    nodes = [
        helper.make_node("Gather", ["lists", "user"], ["places"], name="places"),
        helper.make_node("Gather", ["values", "places"], ["items"], name="items"),
    ]
    fields = [Field("items", "string" if text else "int64", (lists.shape[1],))]
    return bundle_of(path, nodes, held, fields)


def choosing(path: Path, policy: Array) -> Bundle:
    """A bundle that answers a row of probabilities for the user of that number."""
    nodes = [helper.make_node("Gather", ["policies", "user"], ["policy"], name="policy")]
    fields = [Field("policy", "float32", policy.shape[1:])]
    return bundle_of(path, nodes, {"policies": policy.astype(np.float32)}, fields)


def drawing(path: Path, actions: int) -> Bundle:
    """A bundle that draws action ``request % actions``, or takes 0 where nobody asks by name."""
    nodes = [
        helper.make_node("Less", ["request", "zero"], ["nobody"], name="nobody"),
        helper.make_node("Mod", ["request", "most"], ["drawn"], name="drawn"),
        helper.make_node("Where", ["nobody", "zero", "drawn"], ["one"], name="one"),
        helper.make_node("Unsqueeze", ["one", "axis"], ["items"], name="items"),
        helper.make_node("Where", ["nobody", "sure", "alike"], ["likely"], name="likely"),
        helper.make_node("Unsqueeze", ["likely", "axis"], ["propensities"], name="propensities"),
    ]
    held: dict[str, Any] = {
        "zero": np.int64(0),
        "most": np.int64(actions),
        "axis": np.array([1]),
        "sure": np.float32(1),
        "alike": np.float32(1 / actions),
    }
    fields = [Field("items", "int64", (1,)), Field("propensities", "float32", (1,))]
    return bundle_of(path, nodes, held, fields, [Field("request", "int64")])


def log(**columns: Any) -> Batch:
    return Batch({name: np.array(values) for name, values in columns.items()})


def measured(bundle: Bundle, *batches: Batch, **options: Any) -> dict[str, float]:
    options = {"reward": "click", "resamples": 0, **options}
    found = evaluate(bundle, [OffPolicy(**options)], batches, prefix="")
    return {metric.name.removeprefix("off_policy/"): metric.value for metric in found}


LISTS = np.array([[1, 2], [3, MISSING_INT], [2, 1]])


def test_an_action_is_weighed_where_the_bundle_lists_it(tmp_path: Path) -> None:
    bundle = listing(tmp_path / "b", LISTS)
    rows = {
        "user": [0, 0, 1, 2, 2, 1],
        "item": [1, 2, 3, 7, 1, MISSING_INT],
        "place": [1, 2, 2, 1, 1, 1],
        "propensity": [0.5, 0.25, 0.5, 0.5, 0.1, np.nan],
        "click": [1, 1, 1, 1, 1, 5],
    }
    found = measured(bundle, log(**rows), position="place")
    # the first two are where they are listed; 3 is not second, 7 not listed, 1 second; then none
    assert found["rows"] == 5
    assert found["ips"] == pytest.approx((1 / 0.5 + 1 / 0.25) / 5)
    assert found["snips"] == pytest.approx(1)
    assert found["logged"] == 1
    assert found["uncovered"] == pytest.approx(3 / 5)
    assert found["largest"] == pytest.approx(4)
    assert found["mean_weight"] == pytest.approx(6 / 5)
    assert found["effective"] == pytest.approx(36 / 20)
    del rows["place"]
    first = measured(bundle, log(**rows))
    assert first["ips"] == pytest.approx((1 / 0.5 + 1 / 0.5) / 5), "all stand first"


def test_batches_and_text_change_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    count = 300
    names = np.array(["", "a", "b", "c", "d"], object)
    lists = np.stack([random.permutation(4)[:2] + 1 for _ in range(5)])
    rows = log(
        user=random.integers(0, 5, count),
        item=random.integers(1, 5, count),
        propensity=np.full(count, 0.25),
        click=random.integers(0, 2, count),
        who=random.integers(0, 40, count),
    )
    options = {"user": "who", "resamples": 50, "switch": 3.0, "clip": 2.0}
    whole = measured(listing(tmp_path / "a", lists), rows, **options)
    text = rows.with_columns({"item": names[rows["item"]]})
    parts = [text.slice(at, at + 37) for at in range(0, count, 37)]
    assert measured(listing(tmp_path / "b", names[lists]), *parts, **options) == whole
    assert whole["ips/low"] < whole["ips"] < whole["ips/high"]


def test_what_came_of_nothing_is_nothing(tmp_path: Path) -> None:
    rows = {"user": [0, 0], "item": [1, 1], "propensity": [0.5, 0.5]}
    bundle = listing(tmp_path / "b", LISTS)
    assert measured(bundle, log(**rows, click=[2, MISSING_INT]))["ips"] == pytest.approx(2)
    assert measured(bundle, log(**rows, click=[2, np.nan]))["ips"] == pytest.approx(2)


def test_a_list_counts_down_to_each_place(tmp_path: Path) -> None:
    lists = np.array([[1, 2, 3]])
    rows = log(
        user=[0, 0, 0, 0],
        item=[[1, 2, 3], [1, 2, 4], [2, 1, 3], [1, 2, MISSING_INT]],
        propensity=[[0.5, 0.5, 0.5], [0.5, 0.5, 0.25], [0.5, 0.5, 1], [0.5, 0.8, np.nan]],
        click=[[1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 1, np.nan]],
    )
    bundle = listing(tmp_path / "b", lists)
    found = measured(bundle, rows)
    earned = (1 / 0.5 + 1 / 0.125) + 1 / 0.25 + 0 + 1 / 0.4
    assert found["ips"] == pytest.approx(earned / 4)
    assert found["uncovered"] == pytest.approx(2 / 4)
    each = [2 / 6, (4 + 2.5) / (4 + 4 + 2.5), 8 / (8 + 2.5)]
    assert found["snips"] == pytest.approx(sum(each))
    two = measured(bundle, rows, k=2)
    assert two["snips"] == pytest.approx(sum(each[:2]))
    assert two["ips"] == pytest.approx((2 + 4 + 2.5) / 4)
    assert two["uncovered"] == pytest.approx(1 / 4)
    sold = rows.with_columns({"click": np.array([1, 1, 1, 1])})
    assert measured(bundle, sold, k=2)["ips"] == pytest.approx((4 + 4 + 2.5) / 4)
    assert measured(bundle, sold)["ips"] == pytest.approx((8 + 2.5) / 4)


def test_a_long_list_that_nobody_repeats_is_no_division_by_zero(tmp_path: Path) -> None:
    wide = 200
    bundle = listing(tmp_path / "b", np.arange(wide)[None])
    rows = log(user=[0], item=[np.arange(wide)[::-1]], propensity=[np.full(wide, 1e-3)], click=[1])
    found = measured(bundle, rows)
    assert found["ips"] == found["mean_weight"] == 0
    assert found["uncovered"] == 1


def test_what_was_chosen_of_a_list_earns_at_its_place_and_a_whole_list_at_its_end(
    tmp_path: Path,
) -> None:
    bundle = listing(tmp_path / "b", np.array([[1, 2]]))
    rows = log(
        user=[0, 0, 0, 0],
        item=[[1, 2], [1, 3], [1, MISSING_INT], [2, 1]],
        propensity=[[0.5, 0.5], [0.5, 0.5], [0.5, np.nan], [0.5, 0.5]],
        took=[2, 1, MISSING_INT, 2],
        bought=[1, 1, 1, 1],
    )
    taken = measured(bundle, rows, reward=None, chosen="took")
    assert taken["ips"] == pytest.approx((4 + 2 + 0 + 0) / 4)
    whole = measured(bundle, rows, reward="bought")
    assert whole["ips"] == pytest.approx((4 + 0 + 2 + 0) / 4)


def test_a_bundle_that_says_how_likely_each_action_is_is_weighed_by_it(tmp_path: Path) -> None:
    bundle = choosing(tmp_path / "b", np.array([[0.2, 0.8, 0.0], [0.5, 0.25, 0.25]]))
    rows = log(
        user=[0, 0, 1, 1], item=[0, 1, 2, 5], propensity=[0.4, 0.4, 0.5, 0.5], click=[1, 0, 1, 1]
    )
    found = measured(bundle, rows, policy="policy", strength=0.0, folds=2)
    assert found["ips"] == pytest.approx((0.2 / 0.4 + 0.25 / 0.5) / 4)
    assert found["uncovered"] == pytest.approx(1 / 4)
    places = np.array([[[1.0, 0], [0, 1]]])
    by_place = measured(
        choosing(tmp_path / "c", places),
        log(user=[0, 0], item=[1, 1], place=[1, 2], propensity=[0.5, 0.5], click=[1, 1]),
        policy="policy",
        position="place",
    )
    assert by_place["ips"] == pytest.approx(1)


# -- bundles that draw -----------------------------------------------------------------------------


def drawn_log(count: int, actions: int, worth: Array) -> Batch:
    """Logged by the very bundle: action ``request % actions``, each as likely."""
    random = np.random.default_rng(0)
    request = random.integers(0, 2**62, count)
    item = request % actions
    click = (random.random(count) < worth[item]).astype(np.int64)
    return log(request=request, item=item, propensity=np.full(count, 1 / actions), click=click)


def test_a_bundle_that_draws_is_not_asked_with_the_logged_names(tmp_path: Path) -> None:
    worth = np.array([0.9, 0.2, 0.2, 0.1])
    rows, bundle = drawn_log(4000, 4, worth), drawing(tmp_path / "b", 4)
    with pytest.raises(ValueError, match="a bundle that draws its lists: found 'no seed'"):
        measured(bundle, rows)
    still = measured(bundle, rows, seed="request", resamples=200)
    assert still["ips/low"] < 0.9 < still["ips/high"], "without a name it takes the first"
    again = measured(bundle, rows, seed="request", draws=8, resamples=200)
    assert again["dr/low"] < worth.mean() < again["dr/high"]
    assert again["mean_weight"] == pytest.approx(1, abs=0.05)
    once = measured(bundle, rows, seed="request", draws=1, resamples=200)
    assert once["dr/low"] < worth.mean() < once["dr/high"]
    assert again["effective"] > 1.5 * once["effective"], "more draws, less noise"
    assert again == measured(bundle, rows, seed="request", draws=8, resamples=200)


# -- intervals and bounds --------------------------------------------------------------------------


def test_the_new_policy_is_told_from_the_old_one(tmp_path: Path) -> None:
    """A made world: kinds of users, an action that is right for each."""
    random = np.random.default_rng(1)
    count, kinds = 6000, 4
    user, item = random.integers(0, kinds, (2, count))
    click = (random.random(count) < np.where(user == item, 0.6, 0.2)).astype(np.int64)
    rows = log(user=user, item=item, propensity=np.full(count, 1 / kinds), click=click)
    good = measured(listing(tmp_path / "good", np.arange(kinds)[:, None]), rows, resamples=200)
    bad = measured(
        listing(tmp_path / "bad", (np.arange(kinds)[:, None] + 1) % kinds), rows, resamples=200
    )
    for name in ("ips", "snips", "dr"):
        assert good[f"{name}/low"] < 0.6 < good[f"{name}/high"]
        assert bad[f"{name}/low"] < 0.2 < bad[f"{name}/high"]
    assert good["lift/low"] > 0.2 > 0 > bad["lift/high"]
    width = [good[f"{name}/high"] - good[f"{name}/low"] for name in ("ips", "dr")]
    assert width[1] < width[0]


def test_bounds_stand_at_the_figures_that_they_are_of(tmp_path: Path) -> None:
    bundle = listing(tmp_path / "b", LISTS)
    rows = log(user=[0, 0], item=[1, 2], propensity=[0.5, 0.5], click=[1, 0])
    probe = OffPolicy(reward="click", at_least=0.1, low_at_least=10.0, resamples=20)
    found = {metric.name: metric for metric in evaluate(bundle, [probe], [rows])}
    assert found["test/off_policy/dr"].holds
    assert not found["test/off_policy/dr/low"].holds
    bounded = {name for name, metric in found.items() if metric.at_least is not None}
    assert bounded == {"test/off_policy/dr", "test/off_policy/dr/low"}
    nothing = evaluate(bundle, [probe], [])
    assert not any(metric.holds for metric in nothing if metric.at_least is not None)
    assert declared([describe(probe)]) == [probe]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"propensity": [0.5, np.nan]}, {}, "1 of 2: found 'nothing', allowed: the prob"),
        ({"propensity": [0.5, 0.0]}, {}, "'propensity', 1 of 2: found 0.0"),
        ({"propensity": [50.0, 2.0]}, {}, "'propensity', 2 of 2: found 50.0"),
        ({"propensity": [-0.5, 0.5]}, {}, "found -0.5"),
        ({"item": [[1, 2], [1, 2]]}, {}, r"found \[2, 1\], allowed: \[2, 2\]"),
        ({"item": [[1, 2]] * 2, "propensity": [[0.5] * 2] * 2}, {"position": "place"}, "is a list"),
        ({"item": [[1] * 3] * 2, "propensity": [[0.5] * 3] * 2}, {}, "found 3, allowed: 2 or less"),
        ({}, {"position": "place"}, "column 'place': found 0.0, allowed: a place, from 1"),
        ({"place": [3, 1]}, {"position": "place"}, "a logged place: found 3, allowed: 2 or less"),
        ({"click": [[1, 2], [1, 2]]}, {}, r"column 'click': found \[2, 2\]"),
        ({"click": [np.inf, 0]}, {}, "an infinite reward"),
        ({"click": np.array(["a", "b"], object)}, {}, "column 'click': found 'strings'"),
        ({}, {"reward": "clik"}, "unknown column 'clik'"),
        ({}, {"output": "itms"}, "unknown output 'itms'"),
        ({}, {"policy": "items"}, r"of shape|actions|sum"),
        ({}, {"seed": "usr"}, "unknown column 'usr' in OffPolicy.seed"),
    ],
)  # fmt: skip
def test_a_log_that_says_too_little_is_refused(
    columns: dict[str, Any], options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    rows = {
        "user": [0, 1], "item": [1, 2], "propensity": [0.5, 0.5], "click": [1, 0], "place": [0, 1],
        **columns,
    }  # fmt: skip
    with pytest.raises(ValueError, match=words):
        measured(listing(tmp_path / "b", LISTS), log(**rows), **options)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ([[0.5, 0.4]], "found 'a sum of 0.9"),
        ([[1.5, -0.5]], "the least -0.5"),
        ([[np.nan, 1]], "a sum of nan"),
    ],
)
def test_a_policy_of_no_probabilities_is_refused(
    policy: list[list[float]], words: str, tmp_path: Path
) -> None:
    rows = log(user=[0], item=[1], propensity=[0.5], click=[1])
    with pytest.raises(ValueError, match=words):
        measured(choosing(tmp_path / "b", np.array(policy)), rows, policy="policy")


def test_propensities_that_cannot_sum_to_one_are_refused(tmp_path: Path) -> None:
    """Of four actions, each as likely, 1 / propensity is 4; who logs a tenth of it is found out."""
    catalogue = {ITEMS: np.arange(4), COUNTS: np.ones(4, np.int64)}
    bundle = listing(tmp_path / "b", np.arange(4)[:, None], **catalogue)
    random = np.random.default_rng(0)
    rows = {
        "user": random.integers(0, 4, 50),
        "item": random.integers(0, 4, 50),
        "click": np.ones(50),
    }
    assert measured(bundle, log(**rows, propensity=np.full(50, 0.25)))["rows"] == 50
    with pytest.raises(
        ValueError, match=r"mean of 1 / propensity: found 40\.0, allowed: 4 or less"
    ):
        measured(bundle, log(**rows, propensity=np.full(50, 0.025)))
    rows["item"][0] = 77  # so there were actions that this bundle does not know: who knows how many
    assert measured(bundle, log(**rows, propensity=np.full(50, 0.025)))["rows"] == 50


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "self.reward=None"),
        ({"reward": "a", "chosen": "b"}, "allowed: one of the two"),
        ({"reward": "a", "draws": 2}, r"OffPolicy\.draws: found 2, allowed: 0 without seed="),
        ({"reward": "a", "k": 0}, r"OffPolicy\.k: found 0"),
        ({"reward": "a", "folds": 1}, r"OffPolicy\.folds"),
        ({"reward": "a", "clip": 0.0}, r"OffPolicy\.clip: found 0\.0, allowed: above 0"),
        ({"reward": "a", "seed": "s", "policy": "p"}, r"OffPolicy\.seed"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OffPolicy(**options)
