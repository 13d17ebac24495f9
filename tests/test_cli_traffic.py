"""The verbs that say who answers an alias: canary, shadow, rollback, history."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from drivetrain.cli import main
from drivetrain.core.bundle import Manifest
from drivetrain.core.graph import Graph
from drivetrain.registry.registry import Registry

Drive = Callable[..., tuple[int, str, str]]


def register(store: Registry, factor: float) -> str:
    """A bundle that multiplies ``x`` by ``factor``; its digest."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["score"])],
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])],
    )
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    made = Graph.from_proto(model)
    manifest = Manifest(name="made", inputs=made.inputs, outputs=made.outputs)
    return store.write(made, manifest, {}).digest


@pytest.fixture
def store(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "store")


@pytest.fixture
def digests(store: Registry) -> list[str]:
    """Three bundles, the first of which answers."""
    found = [register(store, float(factor)) for factor in (1, 2, 3)]
    store.promote(found[0], "made")
    return found


@pytest.fixture
def drive(store: Registry, capsys: pytest.CaptureFixture[str]) -> Drive:
    """Runs a verb on the store: its status, its output, its errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([*map(str, arguments), f"--set=store={store.root}"])
        return status, *capsys.readouterr()

    return run


def test_a_canary_begins_and_ends_and_is_told(drive, store, digests):
    status, out, err = drive("canary", "made", digests[1][:12], "--share", 0.05)
    assert (status, err) == (0, "")
    assert f"{digests[1][:12]} is its canary at 0.05 of the requests" in out
    assert store.traffic("made").share == 0.05
    assert f"{digests[1][:12]} is its canary" in drive("show", "made")[1]
    status, out, _ = drive("canary", "made", "--end", "--json")
    assert (status, json.loads(out)["canary"], json.loads(out)["share"]) == (0, None, 0.0)


def test_a_shadow_begins_and_ends(drive, store, digests):
    status, out, _ = drive("shadow", "made", digests[2])
    assert (status, store.traffic("made").shadow) == (0, digests[2])
    assert f"{digests[2][:12]} is its shadow" in out
    assert drive("shadow", "made", "--end")[0] == 0
    assert store.traffic("made").shadow is None


@pytest.mark.parametrize("verb", ["canary", "shadow"])
def test_a_bundle_or_the_end_but_not_both_and_not_neither(drive, digests, verb):
    for arguments in ((), (digests[1], "--end")):
        status, _, err = drive(verb, "made", *arguments)
        assert status == 2
        assert "allowed: a bundle, or --end" in err


def test_a_canary_needs_its_share(drive, digests):
    status, _, err = drive("canary", "made", digests[1])
    assert status == 2
    assert "allowed: a share of the requests" in err


def test_one_rollback_ends_the_canary_and_says_so_and_history_tells_it_all(drive, digests):
    drive("promote", digests[1], "made")
    drive("canary", "made", digests[2], "--share", 0.5)
    status, out, _ = drive("rollback", "made")
    ended = f"the canary {digests[2][:12]} is ended: made is {digests[1]} again\n"
    assert (status, out) == (0, ended)
    assert drive("rollback", "made")[1] == f"made is {digests[0]} again\n"
    status, out, _ = drive("history", "made", "--json")
    told = [(line["did"], line["bundle"]) for line in map(json.loads, out.splitlines())]
    assert (status, told) == (
        0,
        [
            ("promoted", digests[0]),
            ("promoted", digests[1]),
            ("canary", digests[2]),
            ("canary ended", digests[2]),
            ("rolled back", digests[0]),
        ],
    )
    _, out, _ = drive("history", "made")
    assert len(out.splitlines()) == 6
    assert out.splitlines()[-1].startswith(f"made: {digests[0][:12]} answers since ")


def test_an_alias_that_is_none_suggests_the_nearest(drive, digests):
    for arguments in (
        ("canary", "maed", digests[1], "--share", 0.1),
        ("shadow", "maed", digests[1]),
        ("history", "maed"),
    ):
        status, _, err = drive(*arguments)
        assert status == 2
        assert "Did you mean 'made'" in err
