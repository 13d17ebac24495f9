"""Smaller models in a whole run: a student of a teacher."""

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
from drivetrain.models import LogisticRegression
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
