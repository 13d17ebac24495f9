"""Canaries, shadows, the way back and the log of an alias."""

import getpass
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from drivetrain.core.bundle import Manifest
from drivetrain.core.graph import Graph
from drivetrain.core.metric import Metric
from drivetrain.registry.alias import Alias, Signature
from drivetrain.registry.registry import Registry

Make = Callable[..., tuple]
NOW = Signature(at="2026-11-22T00:00:00+00:00", who="made@here")


@pytest.fixture
def store(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "store")


@pytest.fixture
def digests(store: Registry, parts: Make) -> list[str]:
    """Three bundles, the first of which answers."""
    found = [store.write(*parts(float(factor))).digest for factor in range(3)]
    store.promote(found[0], "prod")
    return found


def deeds(store: Registry) -> list[tuple[str, str]]:
    return [(change.did, change.bundle) for change in store.history("prod")]


def renamed(name: str) -> tuple[Graph, Manifest, dict[Any, Any]]:
    """The parts of a bundle whose column has another name."""
    graph = helper.make_graph(
        [helper.make_node("Neg", [name], ["score"])],
        "made",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows"])],
    )
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    made = Graph.from_proto(model)
    return made, Manifest(name="made", inputs=made.inputs, outputs=made.outputs), {}


def test_a_canary_answers_a_share_and_the_alias_means_the_stable_bundle(store, digests):
    store.canary("prod", digests[1][:12], 0.05)
    traffic = store.traffic("prod")
    assert (traffic.bundle, traffic.canary, traffic.share) == (digests[0], digests[1], 0.05)
    assert store.resolve("prod") == digests[0]
    store.canary("prod", digests[1], 0.5)
    assert store.traffic("prod").share == 0.5
    store.end_canary("prod")
    assert store.traffic("prod").canary is None
    assert deeds(store) == [
        ("promoted", digests[0]),
        ("canary", digests[1]),
        ("canary", digests[1]),
        ("canary ended", digests[1]),
    ]
    assert [c.share for c in store.history("prod")] == [None, 0.05, 0.5, None]


@pytest.mark.parametrize("which", [1, 2])
def test_any_promotion_ends_the_canary(store, digests, which):
    store.canary("prod", digests[1], 0.05)
    store.promote(digests[which], "prod")
    traffic = store.traffic("prod")
    assert (traffic.bundle, traffic.canary, traffic.share) == (digests[which], None, 0.0)
    assert deeds(store)[-2:] == [("promoted", digests[which]), ("canary ended", digests[1])]


def test_a_promotion_of_what_answers_leaves_a_running_canary(store, digests):
    store.canary("prod", digests[1], 0.05)
    store.promote(digests[0], "prod")
    assert store.traffic("prod").canary == digests[1]


def test_a_roll_back_ends_a_running_canary_first_and_then_goes_to_the_bundle_before(store, digests):
    store.promote(digests[1], "prod")
    store.canary("prod", digests[2], 0.2)
    assert store.rollback("prod").digest == digests[1]
    assert store.traffic("prod").canary is None
    assert store.rollback("prod").digest == digests[0]
    with pytest.raises(ValueError, match="never meant another"):
        store.rollback("prod")
    assert deeds(store)[2:] == [
        ("canary", digests[2]),
        ("canary ended", digests[2]),
        ("rolled back", digests[0]),
    ]


def test_a_canary_is_gated_by_its_bounds_and_a_shadow_is_not(store, digests, parts):
    bad = store.write(*parts(9.0, bounds={"test/auc": [0.7, None]})).digest
    with pytest.raises(ValueError, match="not made a canary of 'prod': test/auc was not measured"):
        store.canary("prod", bad, 0.1)
    store.record(bad, [Metric(name="test/auc", value=0.5)])
    with pytest.raises(ValueError, match=r"test/auc 0\.5 \(at least 0\.7\)"):
        store.canary("prod", bad, 0.1)
    assert store.shadow("prod", bad).digest == store.traffic("prod").shadow == bad
    assert store.traffic("prod").canary is None


def test_a_canary_that_takes_other_columns_is_refused(store, digests):
    other = store.write(*renamed("y")).digest
    with pytest.raises(ValueError, match=r"inputs of the canary .*x, y differ.*allowed: those of"):
        store.canary("prod", other, 0.1)
    store.promote(other, "prod")


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_is_above_0_and_at_most_1(store, digests, share):
    with pytest.raises(ValueError, match="share: found"):
        store.canary("prod", digests[1], share)
    assert store.traffic("prod").canary is None


def test_what_answers_is_neither_canary_nor_shadow(store, digests):
    with pytest.raises(ValueError, match="another bundle than the one that answers"):
        store.canary("prod", digests[0], 0.1)
    with pytest.raises(ValueError, match="another bundle than the one that answers"):
        store.shadow("prod", digests[0])


def test_a_shadow_outlives_a_roll_back_and_ends_when_it_answers(store, digests):
    store.promote(digests[1], "prod")
    store.shadow("prod", digests[2])
    store.rollback("prod")
    assert store.traffic("prod").shadow == digests[2]
    store.promote(digests[2], "prod")
    assert store.traffic("prod").shadow is None
    assert deeds(store)[-1] == ("shadow ended", digests[2])
    store.end_shadow("prod")
    assert deeds(store)[-1] == ("shadow ended", digests[2])


def test_an_alias_that_is_none_has_no_traffic_and_nothing_is_created(store):
    acts = (
        lambda: store.traffic("prod"),
        lambda: store.canary("prod", "0" * 64, 0.1),
        lambda: store.shadow("prod", "0" * 64),
        lambda: store.end_canary("prod"),
        lambda: store.end_shadow("prod"),
    )
    for act in acts:
        with pytest.raises(ValueError, match="unknown alias 'prod'"):
            act()
    assert not store.root.exists()


def test_the_log_says_who_and_when_and_keeps_what_was_rolled_back(store, digests):
    store.promote(digests[1], "prod")
    store.rollback("prod")
    log = store.history("prod")
    assert [(c.did, c.bundle) for c in log] == [
        ("promoted", digests[0]),
        ("promoted", digests[1]),
        ("rolled back", digests[0]),
    ]
    assert all(c.who.startswith(f"{getpass.getuser()}@") for c in log)
    assert [c.at for c in log] == sorted(c.at for c in log)
    assert digests[1][:12] in str(log[1])


def test_an_entry_of_an_older_version_is_read_and_written_on(store, digests):
    older = {
        "bundle": digests[1],
        "at": "2026-02-02T00:00:00+00:00",
        "previous": [{"bundle": digests[0], "at": "2026-01-01T00:00:00+00:00"}],
    }
    (store.root / "aliases/prod.json").write_text(json.dumps(older))
    assert [(c.at[:7], c.did, c.bundle, c.who) for c in store.history("prod")] == [
        ("2026-01", "promoted", digests[0], ""),
        ("2026-02", "promoted", digests[1], ""),
    ]
    store.rollback("prod")
    assert deeds(store)[-1] == ("rolled back", digests[0])
    written = json.loads((store.root / "aliases/prod.json").read_text())
    assert written["bundle"] == digests[0]  # what an older version reads
    assert written["previous"] == []


@pytest.mark.parametrize(
    "damage",
    [
        {"canary": {"bundle": "0" * 64}},
        {"canary": {"bundle": "0" * 64, "share": 2}},
        {"canary": {"bundle": "../../x", "share": 0.1}},
        {"shadow": {"bundle": "x"}},
        {"shadow": "x"},
        {"changes": [{"at": "now", "did": "sold", "bundle": "0" * 64}]},
        {"changes": [{"at": "now", "did": "promoted", "bundle": "0" * 64, "price": 1}]},
    ],
    ids=str,
)
def test_a_damaged_canary_shadow_or_log_is_named(store, digests, damage):
    file = store.root / "aliases" / "prod.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **damage}))
    with pytest.raises(ValueError, match=r"prod\.json is damaged"):
        store.resolve("prod")


BUNDLES = st.sampled_from([letter * 64 for letter in "abcd"])
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("promoted"), BUNDLES),
        st.tuples(st.just("rolled_back")),
        st.tuples(st.just("with_canary"), BUNDLES, st.sampled_from([0.05, 0.5, 1.0])),
        st.tuples(st.just("without_canary")),
        st.tuples(st.just("with_shadow"), BUNDLES),
        st.tuples(st.just("without_shadow")),
    ),
    max_size=12,
)


@settings(deadline=None, derandomize=True)
@given(moves=MOVES)
def test_whatever_is_done_the_log_only_grows_and_the_file_says_it_all(moves):
    alias = Alias.born("a" * 64, NOW)
    for name, *arguments in moves:
        try:
            moved = getattr(alias, name)(*arguments, NOW)
        except ValueError:
            continue
        assert moved.changes[: len(alias.changes)] == alias.changes
        assert (moved == alias) == (moved.changes == alias.changes)
        assert moved.bundle not in (moved.canary, moved.shadow)
        assert (moved.canary is None) == (moved.share == 0.0)
        assert Alias.from_json(moved.to_json()) == moved
        alias = moved
