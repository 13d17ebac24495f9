"""Smaller models in a whole run: a student of a teacher, a pruned model, the best of passes."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import drivetrain as dt
from drivetrain.core.bundle import Bundle
from drivetrain.core.metric import Emitted, Metric, Note
from drivetrain.core.site import Site
from drivetrain.core.system import System
from drivetrain.models import MLP, LogisticRegression
from drivetrain.pipeline import run


def ran_again(system: System, site: Site) -> tuple[Bundle, list[Emitted]]:
    heard: list[Emitted] = []
    bundle = run(system, site, emit=heard.append)
    assert bundle is not None
    return bundle, heard


def figures(heard: Iterable[Emitted]) -> dict[str, float]:
    return {h.name: h.value for h in heard if isinstance(h, Metric)}


# -- distillation ----------------------------------------------------------------------------------


def test_a_student_of_fewer_columns_learns_from_a_teacher_and_names_it(
    ran: Any, tmp_path: Path
) -> None:
    site = ran.copy(tmp_path)
    teacher = tmp_path / "teacher.bundle"
    ran.bundle.pack(teacher)
    loss = dt.Distill(dt.BinaryCrossEntropy("bad"), teacher=teacher, weight=1.0, temperature=2.0)
    student = replace(
        ran.system,
        features=ran.system.features[:1],  # the teacher also reads shop, age and note
        model=LogisticRegression(),
        train=dt.Single(loss=loss, epochs=3, batch_size=100, lr=0.1),
        compress=(),
        probes=(dt.AUC(),),
    )
    bundle, heard = ran_again(student, site)
    assert bundle.manifest.inputs.names == ("amount",)
    assert bundle.manifest.targets.names == ("bad",)
    assert bundle.manifest.parents["teacher"] == ran.bundle.digest
    assert bundle.manifest.system["train"]["loss"]["teacher"] == ran.bundle.digest
    rows = next(ran.system.events.batches("test"))
    student_says = np.log(bundle.predict(rows)["bad"])
    assert np.corrcoef(student_says, np.log(ran.bundle.predict(rows)["bad"]))[0, 1] > 0.5
    made = "examples/train_rows"
    assert made in figures(heard)
    _, again = ran_again(replace(student, train=replace(student.train, lr=0.05)), site)
    assert made not in figures(again), "the teacher's predictions were kept"


def test_a_teacher_that_is_not_there_is_named_before_anything_runs(
    ran: Any, tmp_path: Path
) -> None:
    loss = dt.Distill(dt.BinaryCrossEntropy("bad"), teacher=tmp_path / "gone")
    system = replace(ran.system, train=dt.Single(loss=loss))
    heard: list[Emitted] = []
    with pytest.raises(FileNotFoundError, match=r"no bundle at .*gone"):
        run(system, Site(work=str(tmp_path / "work")), emit=heard.append)
    assert [h.text for h in heard if isinstance(h, Note)] == ["begins"]


# -- pruning ---------------------------------------------------------------------------------------


def pruned(ran: Any, **options: Any) -> System:
    prune = dt.Prune(channels=0.75, epochs=2)
    train = dt.Single(
        loss=dt.BinaryCrossEntropy("bad"), epochs=2, batch_size=100, lr=0.02, prune=prune
    )
    options = {"compress": (), "probes": (dt.AUC(),), "train": train, **options}
    return replace(ran.system, model=MLP(hidden=(128, 64), dim=4), **options)


def test_a_pruned_model_is_measured_against_what_it_was(ran: Any, tmp_path: Path) -> None:
    site = ran.copy(tmp_path)
    bundle, heard = ran_again(pruned(ran), site)
    found = bundle.manifest.metrics
    assert found["prune/parameters_after"] < 0.2 * found["prune/parameters_before"]
    assert found["compress/prune/kept"] == 1
    assert found["compress/prune/after_bytes"] < 0.6 * found["compress/prune/before_bytes"]
    assert found["compress/prune/after_auc"] > found["compress/prune/before_auc"] - 0.05
    said = figures(heard)
    for size in (1, 64):
        assert said[f"compress/prune/before_batch{size}_ms"] > 0
        assert said[f"compress/prune/after_batch{size}_ms"] > 0
    (line,) = [h.text for h in heard if isinstance(h, Note) and h.text.startswith("prune: ")]
    assert "KiB" in line
    assert "batch64_ms" in line
    assert "auc" in line
    again, heard = ran_again(pruned(ran), site)
    assert again.digest == bundle.digest
    assert "prune/train/loss" not in figures(heard), "nothing was trained again"


def test_pruning_that_breaks_a_bound_is_refused_and_the_whole_model_is_kept(
    ran: Any, tmp_path: Path
) -> None:
    site = ran.copy(tmp_path)
    whole, _ = ran_again(pruned(ran), site)
    auc = whole.manifest.metrics["compress/prune/after_auc"]
    before = whole.manifest.metrics["compress/prune/before_auc"]
    train = replace(pruned(ran).train, prune=dt.Prune(channels=0.99, epochs=1, lr=1e-9))  # pyright: ignore[reportArgumentType]
    bound = min(auc, before) - 0.01
    bundle, heard = ran_again(pruned(ran, train=train, probes=(dt.AUC(at_least=bound),)), site)
    assert bundle.manifest.metrics["compress/prune/kept"] == 0
    assert len(bundle.graph.model) == bundle.manifest.metrics["compress/prune/before_bytes"]
    assert any("prune is refused" in h.text for h in heard if isinstance(h, Note) and h.warning)


# -- the best of passes ----------------------------------------------------------------------------


def test_a_choice_is_recorded_in_the_manifest_and_pinned_it_is_the_same_everywhere(
    ran: Any, tmp_path: Path
) -> None:
    site = ran.copy(tmp_path)
    int8 = dt.Quantize("int8", calibration_rows=200)
    best = dt.Best((int8, (int8, dt.Optimize())), metric="auc", at_most_loss=0.05)
    probes = (dt.AUC(),)
    bundle, heard = ran_again(replace(ran.system, compress=(best,), probes=probes), site)
    recorded = {n: v for n, v in bundle.manifest.metrics.items() if n.endswith("/chosen")}
    assert set(recorded) == {f"compress/best/{name}/chosen" for name in best.chains}
    assert "compress/best/int8/batch1_ms" in figures(heard)
    assert "compress/best/int8/batch1_ms" not in bundle.manifest.metrics
    again, _ = ran_again(replace(ran.system, compress=(best,), probes=probes), site)
    assert again.digest == bundle.digest, "what was chosen here stays chosen"
    pinned = replace(best, pin="int8")
    bundle, heard = ran_again(replace(ran.system, compress=(pinned,), probes=probes), site)
    plain, _ = ran_again(replace(ran.system, compress=(int8,), probes=probes), site)
    assert bundle.graph.digest == plain.graph.digest
    assert bundle.manifest.metrics["compress/int8/kept"] == 1


# -- eight bits ------------------------------------------------------------------------------------


def test_a_model_trained_in_eight_bits_is_measured_beside_what_passes_make(
    ran: Any, tmp_path: Path
) -> None:
    site = ran.copy(tmp_path)
    train = dt.Single(
        loss=dt.BinaryCrossEntropy("bad"),
        epochs=2,
        batch_size=100,
        lr=0.02,
        quantize=dt.QuantizationAware(),
    )
    passes = (dt.Quantize("int8-dynamic"), dt.Quantize("int8", calibration_rows=200))
    best = dt.Best(passes, metric="auc", at_most_loss=0.05)
    system = pruned(ran, train=train, compress=(best,))
    bundle, _ = ran_again(system, site)
    found = bundle.manifest.metrics
    names = ("quantize", "int8-dynamic", "int8")
    assert sum(found[f"compress/best/{name}/chosen"] for name in names) <= 1
    # Made of the very model that rounding was trained into, all have about its size and figures.
    sizes = [found[f"compress/best/{name}/bytes"] for name in names]
    assert max(sizes) < 1.3 * min(sizes)
    assert found["compress/best/quantize/auc"] > found["compress/best/int8/auc"] - 0.05
    taken = replace(system, compress=(replace(best, pin="quantize"),))
    bundle, heard = ran_again(taken, site)
    assert bundle.manifest.metrics["compress/quantize/kept"] == 1
    assert "QuantizeLinear" in {node.op_type for node in bundle.graph.proto.graph.node}
    assert "quantize/train/loss" not in figures(heard), "nothing was trained again"
