"""From events to a registered bundle: what is kept, what is redone, what is refused."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import drivetrain as dt
from drivetrain.core.batch import Batch
from drivetrain.core.bundle import Bundle
from drivetrain.core.graph import Graph
from drivetrain.core.metric import Emitted, Metric, Note
from drivetrain.core.site import Site
from drivetrain.core.statistic import Quantiles
from drivetrain.core.system import System
from drivetrain.declaration import load
from drivetrain.events.prepared import Prepared
from drivetrain.models import MLP
from drivetrain.pipeline import STAGES, run
from drivetrain.registry.registry import Registry


def ran_again(system: System, site: Site) -> tuple[Bundle, list[Emitted]]:
    heard: list[Emitted] = []
    bundle = run(system, site, emit=heard.append)
    assert bundle is not None
    return bundle, heard


def notes(heard: Iterable[Emitted], stage: str) -> list[str]:
    return [h.text for h in heard if isinstance(h, Note) and h.stage == stage]


def metrics(heard: Iterable[Emitted]) -> set[str]:
    return {h.name for h in heard if isinstance(h, Metric)}


def kept(site: Site) -> dict[str, set[str]]:
    """What each stage has kept, by the names of its entries."""
    rooms = ("events", "features", "examples", "train")
    found = {room: Path(site.work, room) for room in rooms}
    return {
        room: {p.name for p in path.iterdir() if not p.name.startswith(".")}
        for room, path in found.items()
        if path.is_dir()
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# -- stages ----------------------------------------------------------------------------------------


def test_a_run_goes_as_far_as_it_was_told_and_further_the_next_time(ran: Any, site: Site) -> None:
    system = replace(ran.system, compress=())
    made = {"events": "events", "features": "features", "train": "train"}
    for position, stage in enumerate(STAGES[:-1]):
        heard: list[Emitted] = []
        assert run(system, site, until=stage, emit=heard.append) is None
        begun = [h.stage for h in heard if isinstance(h, Note) and h.text == "begins"]
        assert begun == list(STAGES[: position + 1])
        assert {room for room in made if kept(site).get(room)} == {
            room for room, of in made.items() if STAGES.index(of) <= position
        }
        assert not Path(site.store).exists()
    assert run(system, site, until="register") is not None


def test_an_unknown_stage_suggests_the_nearest(ran: Any, site: Site) -> None:
    with pytest.raises(ValueError, match=r"unknown stage 'trian'\. Did you mean 'train'"):
        run(ran.system, site, until="trian")  # pyright: ignore[reportArgumentType]


def test_a_second_run_makes_nothing_again(ran: Any, tmp_path: Path) -> None:
    site = ran.copy(tmp_path)
    before = kept(site)
    bundle, heard = ran_again(ran.system, site)
    assert bundle.digest == ran.bundle.digest
    assert kept(site) == before
    assert any("nothing changed" in text for text in notes(heard, "events"))
    assert any("nothing changed" in text for text in notes(heard, "train"))
    assert not {"events/rows", "features/fit_seconds", "train/loss"} & metrics(heard)


CHANGES: dict[str, tuple[Callable[[System], dict[str, Any]], set[str]]] = {
    "lr": (lambda s: {"train": replace(s.train, lr=0.01)}, {"train"}),
    "model": (lambda s: {"model": MLP(hidden=(6,), dim=4)}, {"train"}),
    "feature of a known column": (
        lambda s: {"features": (*s.features, dt.Clip("amount", low=0.0, high=90.0))},
        {"examples", "train"},
    ),
    "feature with a new statistic": (
        lambda s: {"features": (*s.features, dt.Log("amount"))},
        {"features", "examples", "train"},
    ),
    "fewer columns": (
        lambda s: {"features": s.features[:3]},
        {"events", "features", "examples", "train"},
    ),
    "compress": (lambda s: {"compress": (dt.Optimize(),)}, set()),
    "probes": (lambda s: {"probes": (dt.AUC(at_least=0.55),)}, set()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_remakes_only_what_follows_from_it(change: str, ran: Any, tmp_path: Path) -> None:
    changed, remade = CHANGES[change]
    site = ran.copy(tmp_path)
    system = replace(ran.system, **changed(ran.system))
    if change not in ("compress", "probes"):
        system = replace(system, compress=(), probes=system.probes[:1])
    before = kept(site)
    bundle, _ = ran_again(system, site)
    assert {room for room, entries in kept(site).items() if entries != before[room]} == remade
    assert bundle.digest != ran.bundle.digest


def test_another_version_fits_and_trains_anew(
    ran: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = ran.copy(tmp_path)
    before = kept(site)
    monkeypatch.setattr("drivetrain.pipeline._packages", lambda: {"drivetrain": "another"})
    ran_again(replace(ran.system, compress=()), site)
    remade = {room for room, entries in kept(site).items() if entries != before[room]}
    assert remade == {"features", "train"}


def test_changed_rows_remake_everything(declared: Any, make_events: Any, site: Site) -> None:
    file = declared(make_events(rows=600))
    system = replace(load(file), compress=())
    first, _ = ran_again(system, site)
    before = kept(site)
    declared(make_events(rows=600, seed=1))
    second, _ = ran_again(system, site)
    assert {room: len(entries) for room, entries in kept(site).items()} == {
        room: len(entries) + 1 for room, entries in before.items()
    }
    assert first.manifest.parents["events"] != second.manifest.parents["events"]
    assert first.manifest.parents["system"] == second.manifest.parents["system"]


def test_rows_written_anew_with_the_same_values_are_the_same_data(
    ran: Any, declared: Any, site: Site
) -> None:
    system = replace(load(declared()), compress=())
    first, _ = ran_again(system, site)
    table = pq.read_table(ran.folder / "events.parquet")
    pq.write_table(table, system.events.source.paths[0], compression="gzip", row_group_size=100)
    before = kept(site)
    second, heard = ran_again(system, site)
    assert len(kept(site)["events"]) == 2
    assert kept(site)["train"] == before["train"]
    assert "train/loss" not in metrics(heard)
    assert second.digest == first.digest


def test_the_same_system_in_another_place_is_the_same_bundle(ran: Any, site: Site) -> None:
    bundle, _ = ran_again(ran.system, site)
    assert contents(bundle.path) == contents(ran.bundle.path)
    assert bundle.digest == ran.bundle.digest


# -- figures ---------------------------------------------------------------------------------------


def test_what_repeats_is_in_the_bundle_and_times_lie_beside_it(ran: Any) -> None:
    inside = ran.bundle.manifest.metrics
    assert 0.6 < inside["test/auc"] < 1
    assert inside["compress/int8/kept"] == 1
    assert inside["compress/int8/before_auc"] == pytest.approx(
        inside["compress/int8/after_auc"], abs=0.05
    )
    assert not [name for name in inside if "latency" in name or name.endswith("_ms")]
    beside = {m.name: m for m in Registry(ran.site.store).measurements(ran.bundle.digest)}
    assert beside["latency/p99_ms"].value > 0
    assert beside["latency/p99_ms"].at_most == 10_000
    assert beside["compress/int8/after_batch1_ms"].value > 0
    by_name = {name.replace("estimated_", ""): metric.value for name, metric in beside.items()}
    spent = [by_name[f"{stage}/energy_kwh"] for stage in STAGES]
    assert min(spent) >= 0
    assert by_name["run/energy_kwh"] == pytest.approx(sum(spent))
    assert not inside.keys() & beside.keys()
    assert {name: tuple(b) for name, b in ran.bundle.manifest.bounds.items()} == {
        "test/auc": (0.6, None),
        "latency/p99_ms": (None, 10_000),
    }


def test_a_bundle_names_what_it_was_made_of(ran: Any) -> None:
    parents = ran.bundle.manifest.parents
    assert parents["system"] == ran.system.digest
    (events,) = kept(ran.site)["events"]
    assert parents["events"] == Prepared.open(Path(ran.site.work, "events", events)).digest


def test_a_bundle_keeps_what_its_predictions_and_columns_looked_like(ran: Any) -> None:
    fitted = ran.bundle.fitted
    assert fitted[Quantiles("prediction.bad")].count == 254, (
        "the predictions of the validation split"
    )
    assert {s.column for s in fitted} == {"prediction.bad", "amount", "age", "shop", "note"}


def test_a_figure_that_is_no_number_is_absent_and_breaks_its_bound(
    declared: Any, make_events: Any, site: Site
) -> None:
    table = make_events(rows=600)
    one_class = np.where(np.arange(600) > 390, 1, table["bad"].to_numpy())  # from September on
    system = load(declared(table.set_column(5, "bad", pa.array(one_class))))
    bundle, _ = ran_again(replace(system, compress=()), site)
    assert "test/auc" not in bundle.manifest.metrics
    with pytest.raises(ValueError, match="test/auc was not measured"):
        Registry(site.store).promote(bundle.digest, "made")


def test_a_broken_bound_stops_promotion_by_name(ran: Any, tmp_path: Path) -> None:
    site = ran.copy(tmp_path)
    probes = (dt.AUC(at_least=0.999), dt.LogLoss(at_most=5.0))
    bundle, _ = ran_again(replace(ran.system, probes=probes, compress=()), site)
    registry = Registry(site.store)
    with pytest.raises(ValueError, match=r"test/auc 0\.\d+ \(at least 0\.999\)") as error:
        registry.promote(bundle.digest, "made")
    assert "log_loss" not in str(error.value)
    assert registry.aliases() == {}


# -- compression -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Constant:
    """A pass that ruins a model: every prediction becomes one half."""

    name: str = "constant"

    def __call__(self, graph: Graph, calibration: Callable[[], Iterable[Batch]]) -> Graph:
        from onnx import TensorProto, helper

        model = graph.proto
        (output,) = model.graph.output
        for node in model.graph.node:
            node.output[:] = ["ruined" if n == output.name else n for n in node.output]
        for name, value in (("zero", 0.0), ("half", 0.5)):
            model.graph.initializer.append(
                helper.make_tensor(f"ruin/{name}", TensorProto.FLOAT, [], [value])
            )
        model.graph.node.extend(
            [
                helper.make_node("Mul", ["ruined", "ruin/zero"], ["ruin/nothing"]),
                helper.make_node("Add", ["ruin/nothing", "ruin/half"], [output.name]),
            ]
        )
        return Graph.from_proto(model)


def test_a_pass_that_breaks_a_bound_is_refused_and_the_run_goes_on(
    ran: Any, tmp_path: Path
) -> None:
    site = ran.copy(tmp_path)
    plain, _ = ran_again(replace(ran.system, compress=()), site)
    bundle, heard = ran_again(replace(ran.system, compress=(Constant(), dt.Optimize())), site)
    (warning,) = [h for h in heard if isinstance(h, Note) and h.warning]
    assert warning.stage == "compress"
    assert "constant is refused" in warning.text
    assert "auc 0.5 (at least 0.6)" in warning.text
    found = bundle.manifest.metrics
    assert found["compress/constant/kept"] == 0
    assert found["compress/constant/after_auc"] == 0.5
    assert found["compress/optimize-extended/kept"] == 1
    assert found["compress/optimize-extended/before_auc"] > 0.6
    rows = next(ran.system.events.batches("test"))
    np.testing.assert_allclose(bundle.predict(rows)["bad"], plain.predict(rows)["bad"], atol=1e-6)


def test_a_slow_moment_refuses_no_pass(ran: Any, tmp_path: Path) -> None:
    """What depends on the machine's load gates promotion, and never what the bundle is."""
    site = ran.copy(tmp_path)
    probes = (dt.AUC(), dt.Latency(p50_ms=1e-9, repeats=5, seconds=0.1))
    bundle, _ = ran_again(replace(ran.system, compress=(dt.Optimize(),), probes=probes), site)
    assert bundle.manifest.metrics["compress/optimize-extended/kept"] == 1
    with pytest.raises(ValueError, match="latency/p50_ms"):
        Registry(site.store).promote(bundle.digest, "made")


def test_a_pass_without_validation_rows_is_a_clear_error(
    declared: Any, make_events: Any, site: Site
) -> None:
    system = load(declared(make_events(rows=300)))
    split = dt.TimeSplit(validate="2024-09-01", test="2024-09-01")
    events = dt.Parquet(system.events.source.paths, time="at").split(split)
    with pytest.raises(ValueError, match="no validation rows"):
        run(replace(system, events=events, probes=()), site)
