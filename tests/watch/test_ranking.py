"""Full ranking beside slow and obvious definitions, on bundles whose lists are known."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from drivetrain.core.batch import Batch
from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.catalogue import COUNTS, ITEMS
from drivetrain.core.describe import describe
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.watch import lists as lists_module
from drivetrain.watch.probes import declared, evaluate
from drivetrain.watch.ranking import Ranking


def bundle_of(
    path: Path, lists: np.ndarray, catalogue: tuple[np.ndarray, np.ndarray] | None = None
) -> Bundle:
    """A bundle that answers a row of ``lists`` for the user of that number."""
    # Of rows of text onnxruntime gathers the first element alone; single ones it gathers well.
    values, places = np.unique(lists, return_inverse=True)
    places = places.reshape(lists.shape).astype(np.int64)
    held = [numpy_helper.from_array(array, name) for name, array in
            (("values", values), ("lists", places))]  # fmt: skip
    if catalogue is not None:
        held += [
            numpy_helper.from_array(array, f"model/{name}")
            for name, array in zip((ITEMS, COUNTS), catalogue, strict=True)
        ]
    text = lists.dtype == object
    kind = TensorProto.STRING if text else TensorProto.INT64
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["lists", "user"], ["places"], name="places"),
            helper.make_node("Gather", ["values", "places"], ["items"], name="items"),
        ],
        "lists",
        [helper.make_tensor_value_info("user", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("items", kind, ["rows", lists.shape[1]])],
        held,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    kind_of = "string" if text else "int64"
    manifest = Manifest(
        name="lists",
        inputs=Schema((Field("user", "int64"),)),
        outputs=Schema((Field("items", kind_of, (lists.shape[1],)),)),
        targets=Schema((Field("item", kind_of),)),
    )
    return Bundle.write(path, Graph.from_proto(model), manifest, {})


def slow(lists: Any, rows: list[tuple[int, Any]], k: int) -> dict[str, float]:
    """The definitions, user by user."""
    figures: dict[str, list[float]] = {name: [] for name in ("recall", "ndcg", "mrr", "hit")}
    for user in {user for user, _ in rows}:
        due = {item for one, item in rows if one == user}
        found: set[Any] = set()
        gain, first = 0.0, 0.0
        for place, item in enumerate(lists[user][:k].tolist(), start=1):
            if item in due and item not in found:
                found.add(item)
                gain += 1 / math.log2(place + 1)
                first = first or 1 / place
        best = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(due)) + 1))
        figures["recall"].append(len(found) / len(due))
        figures["ndcg"].append(gain / best)
        figures["mrr"].append(first)
        figures["hit"].append(float(bool(found)))
    return {f"{name}@{k}": float(np.mean(values)) for name, values in figures.items()}


def measured(
    bundle: Bundle, rows: list[tuple[int, Any]], size: int = 1000, **options: Any
) -> dict[str, float]:
    text = bundle.manifest.targets.fields[0].dtype == "string"
    users = np.array([user for user, _ in rows], np.int64)
    items = np.array([item for _, item in rows], object if text else np.int64)
    batches = [
        Batch({"user": users[at : at + size], "item": items[at : at + size]})
        for at in range(0, len(rows), size)
    ]
    found = evaluate(bundle, [Ranking(**options)], iter(batches), prefix="")
    return {metric.name: metric.value for metric in found}


@pytest.mark.parametrize("text", [False, True], ids=["int64", "text"])
def test_figures_are_those_of_the_definitions(text: bool, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("ranking")
    made = 0

    @given(data=st.data())
    @settings(max_examples=20, deadline=None, derandomize=True)
    def check(data: st.DataObject) -> None:
        nonlocal made
        made += 1
        items = [*range(8)] if not text else [f"i{n}" for n in range(8)]
        wide = data.draw(st.integers(1, 6))
        users = data.draw(st.integers(1, 5))
        lists = data.draw(
            st.lists(
                st.lists(st.sampled_from(items[:7]), min_size=wide, max_size=wide),
                min_size=users,
                max_size=users,
            )
        )
        table = np.array(lists, object if text else np.int64)
        row = st.tuples(st.integers(0, users - 1), st.sampled_from(items))
        rows = data.draw(st.lists(row, min_size=1, max_size=30))
        k = data.draw(st.integers(1, wide))
        bundle = bundle_of(folder / str(made), table)
        found = measured(bundle, rows, data.draw(st.integers(1, 9)), k=k, resamples=0)
        due = slow(table, rows, k)
        assert {name: found[name] for name in due} == pytest.approx(due, abs=1e-12)
        assert found[f"users@{k}"] == len({user for user, _ in rows})
        assert set(found) == {*due, f"users@{k}"}, "without a catalogue nothing is said of it"

    check()


LISTS = np.array([[1, 2, 3], [3, 2, 1], [4, MISSING_INT, MISSING_INT], [1, 2, 3]])
CATALOGUE = (np.array([1, 2, 3, 4, 5, MISSING_INT]), np.array([8, 4, 2, 1, 1, 0]))
ROWS = [(0, 1), (0, 9), (1, 2), (2, 7), (1, 2)]


def test_what_is_listed_is_held_against_the_catalogue(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", LISTS, CATALOGUE)
    found = measured(bundle, ROWS, k=2)
    # asked for 0, 1 and 2: listed are 1 and 2, 3 and 2, and 4
    assert found["coverage@2"] == pytest.approx(4 / 5)
    assert found["popularity@2"] == pytest.approx((8 + 4 + 2 + 4 + 1) / 5)
    assert found["novelty@2"] == pytest.approx((1 + 2 + 3 + 2 + 4) / 5)
    assert found["users@2"] == 3


def test_each_user_is_asked_once_and_with_their_first_row(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", LISTS)
    asked: list[int] = []

    class Session:
        def run(self, rows: Batch, outputs: Any) -> Batch:
            asked.extend(rows["user"].tolist())
            assert set(rows.columns) == {"user"}, "what it takes and no more"
            return bundle.session.run(rows, outputs)

    class Asked:
        manifest, graph, session = bundle.manifest, bundle.graph, Session()

    lists = lists_module.Lists(Asked(), "user", "item", "items", 2)  # type: ignore[arg-type]
    users = [3, 1, 3, 0, 1, 2, 3, 0]
    for at in range(0, len(users), 3):
        part = users[at : at + 3]
        lists.add(Batch({"user": np.array(part), "item": np.ones(len(part), np.int64)}))
    assert sorted(asked) == [0, 1, 2, 3]
    assert lists.metrics(0, 0, {})[-1].value == 4


def test_many_users_are_asked_for_some_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    table = np.stack([random.permutation(20)[:5] for _ in range(50)])
    rows = [(int(u), int(i)) for u, i in random.integers(0, [50, 20], (300, 2))]
    bundle = bundle_of(tmp_path / "b", table)
    whole = measured(bundle, rows, k=5)
    monkeypatch.setattr(lists_module, "TOGETHER", 7)
    assert measured(bundle, rows, 40, k=5) == pytest.approx(whole, abs=1e-12)
    assert whole["recall@5"] == pytest.approx(slow(table, rows, 5)["recall@5"])


def test_rows_without_a_user_or_an_item_do_not_count(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", LISTS)
    rows = [*ROWS, (3, MISSING_INT)]
    assert measured(bundle, rows, k=3) == measured(bundle, ROWS, k=3)


def test_the_interval_is_that_of_drawing_users_anew(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    table = np.stack([random.permutation(30)[:4] for _ in range(200)])
    rows = [(int(u), int(i)) for u, i in random.integers(0, [200, 30], (900, 2))]
    bundle = bundle_of(tmp_path / "b", table)
    found = measured(bundle, rows, k=4, resamples=2000)
    users = sorted({user for user, _ in rows})
    each = np.array([slow(table, [r for r in rows if r[0] == u], 4)["recall@4"] for u in users])
    drawn = each[random.integers(0, len(each), (2000, len(each)))].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    width = high - low
    assert found["recall@4/low"] == pytest.approx(low, abs=width / 8)
    assert found["recall@4/high"] == pytest.approx(high, abs=width / 8)
    assert found == measured(bundle, rows, k=4, resamples=2000), "the same draw again"
    other = measured(bundle, rows, k=4, resamples=2000, seed=1)
    assert other["recall@4/low"] != found["recall@4/low"]
    assert other["recall@4"] == found["recall@4"]


def test_no_rows_give_no_figures(tmp_path: Path) -> None:
    found = measured(bundle_of(tmp_path / "b", LISTS, CATALOGUE), [], k=2)
    assert found.pop("users@2") == 0
    assert found.pop("coverage@2") == 0
    assert all(math.isnan(value) for value in found.values())
    assert len(found) == 6


def test_bounds_stand_at_the_figures_that_they_are_of(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", LISTS)
    probe = Ranking(k=2, recall=0.3, ndcg=0.9)
    rows = Batch({"user": np.array([0, 1]), "item": np.array([1, 2])})
    found = {metric.name: metric for metric in evaluate(bundle, [probe], [rows], prefix="test/")}
    assert found["test/recall@2"].holds
    assert found["test/recall@2"].at_least == 0.3
    assert not found["test/ndcg@2"].holds
    bounded = {name for name, metric in found.items() if metric.at_least is not None}
    assert bounded == {"test/recall@2", "test/ndcg@2"}


def test_two_probes_of_other_lengths_go_side_by_side_and_are_made_again(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", LISTS)
    probes = [Ranking(k=1), Ranking(k=3, item="item")]
    assert declared(describe(probe) for probe in probes) == probes
    rows = Batch({"user": np.array([0, 1]), "item": np.array([1, 2])})
    names = [metric.name for metric in evaluate(bundle, probes, [rows])]
    assert {"test/recall@1", "test/recall@3"} <= set(names)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 4}, r"output 'items': found .*allowed: \[rows, 4 or more\]"),
        ({"k": 2, "output": "itms"}, "unknown output 'itms'"),
        ({"k": 2, "item": "itm"}, "unknown target 'itm'"),
        ({"k": 2, "user": "usr"}, "unknown column 'usr'"),
    ],
)
def test_a_bundle_that_lists_nothing_of_the_kind_is_refused(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        measured(bundle_of(tmp_path / "b", LISTS), ROWS, **options)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Ranking\.k: found 0"):
        Ranking(k=0)
    with pytest.raises(ValueError, match=r"Ranking\.resamples: found -1"):
        Ranking(resamples=-1)
