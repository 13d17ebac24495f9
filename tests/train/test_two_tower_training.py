"""What two towers are trained on, and how."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tastes import USERS, Tastes  # beside this file
from two_towers import HOLDING, TRAIN, had, likes, pairs

from drivetrain.core.batch import Batch
from drivetrain.core.graph import Graph
from drivetrain.core.job import Job, Resources
from drivetrain.core.seams import Order, Run, Shard
from drivetrain.launch.local import Local
from drivetrain.train import (
    RowWise,
)
from drivetrain.train.recall.fusing import Trial
from drivetrain.train.recall.interactions import FIRST_USER
from drivetrain.train.towers.pairs import HISTORY, ITEM, Pairs
from drivetrain.train.two_tower import TwoTower


@pytest.mark.parametrize("text", [False, True], ids=["int64", "text"])
def test_pairs_are_the_rows_with_places_of_items(text: bool, tmp_path: Path) -> None:
    tastes = Tastes(text=text, more=True)
    found, catalogue = pairs(tastes, tmp_path), had(tastes).catalogue.tolist()
    place = {item: at for at, item in enumerate(catalogue, start=1)}
    table = tastes.table("train")
    (batch,) = found.batches("train", size=tastes.train)
    assert batch[ITEM][:, 0].tolist() == [place[item] for item in table["item"].tolist()]
    due = [[place.get(item, 0) for item in row] for row in table["recent"].tolist()]
    assert batch[HISTORY].tolist() == due
    for name in tastes.features.tensors.names:
        np.testing.assert_array_equal(batch[name], table[name])
        assert batch[name].dtype == table[name].dtype
        assert batch[name].flags.writeable
    np.testing.assert_allclose(batch["weight"], table["stars"] / table["stars"].mean(), rtol=1e-6)
    assert found.counts(len(catalogue)).tolist() == [
        table["item"].tolist().count(item) for item in catalogue
    ]
    assert list(tmp_path.iterdir()) == [], "they lie in files without a name"


def test_rows_with_items_that_training_never_saw_are_not_validated_on(tmp_path: Path) -> None:
    tastes = Tastes()
    found = pairs(tastes, tmp_path)
    assert found.rows("validate") == tastes.rows("validate") - 1
    (batch,) = found.batches("validate", size=1000)
    assert batch[ITEM].min() == 1


def test_pairs_that_are_held_out_for_a_trial_are_not_trained_on(tmp_path: Path) -> None:
    tastes = Tastes()
    whole = had(tastes)
    trial = Trial.of(whole, 0.3, seed=0)
    (batch,) = pairs(tastes, tmp_path, found=trial.kept).batches("train", size=tastes.train)
    user, place = batch["index"][:, 0], batch[ITEM][:, 0] - 1
    table = tastes.table("train")
    strangers = (table["index"][:, 0] < FIRST_USER).sum()
    assert (user < FIRST_USER).sum() == strangers > 0
    known = {pair for pair in zip(user.tolist(), place.tolist(), strict=True) if pair[0] > 1}
    assert len(known) == len(trial.kept.had.columns) < len(whole.had.columns)
    rows = np.repeat(np.arange(trial.out.rows), trial.out.lengths)
    assert not known & set(zip(rows.tolist(), trial.out.columns.tolist(), strict=True))


def test_shards_share_each_batch_and_a_later_start_goes_on(tmp_path: Path) -> None:
    found = pairs(Tastes(train=103), tmp_path)
    order = Order(seed=-3, epoch=2)

    def read(**options: Any) -> list[list[Any]]:
        batches = found.batches("train", size=20, **{"order": order, **options})
        return [[*zip(b["index"][:, 0], b[ITEM][:, 0], strict=True)] for b in batches]

    whole = read()
    assert [len(batch) for batch in whole] == [20] * 5 + [3]
    assert read(start=40) == whole[2:]
    assert read(order=Order(seed=-3, epoch=3)) != whole
    shards = [read(shard=Shard(i, 4)) for i in range(4)]
    assert [[*chain(*parts)] for parts in zip(*shards, strict=True)] == whole
    assert sorted(chain(*whole)) == sorted(chain(*read(order=None)))


def test_events_that_end_before_their_examples_are_an_error(tmp_path: Path) -> None:
    tastes = Tastes()

    class Cut:
        schema = tastes.events.schema

        def batches(self, split: Any, *args: Any) -> Iterator[Batch]:
            yield from list(tastes.events.batches(split))[:-1]

    class Changed(Tastes):
        events = Cut()  # type: ignore[assignment]

    with pytest.raises(ValueError, match="events end before their examples"):
        pairs(Changed(), tmp_path, found=had(tastes))


class Stopped(Pairs):
    """Pairs of which a training comes only so far."""

    left = 10**9

    def batches(self, split: Any, *args: Any, **kwargs: Any) -> Iterator[Batch]:
        for batch in super().batches(split, *args, **kwargs):
            self.left -= split == "train"
            if self.left < 0:
                raise KeyboardInterrupt
            yield batch


def trained(method: TwoTower, tastes: Tastes, folder: Path, left: int = 10**9) -> Any:
    """The weights after training alone."""
    rows = pairs(tastes, folder, weight=None)
    rows.__class__, rows.left = Stopped, left  # type: ignore[assignment, attr-defined]
    towers = method._towers(tastes, rows, had(tastes).catalogue)  # type: ignore[arg-type]
    fitted: Any = method.train.fit(towers, rows, Run(directory=folder))
    return dict(fitted.state_dict())


def test_what_was_interrupted_ends_with_the_same_bits(tmp_path: Path) -> None:
    strategy = replace(TRAIN, epochs=2, checkpoint_steps=5, rows=RowWise(at_least=50))
    method = replace(HOLDING, dropout=0.1, train=strategy)
    folders = [tmp_path / name for name in ("whole", "again", "cut")]
    for folder in folders:
        folder.mkdir()
    whole, again = (trained(method, Tastes(), folder) for folder in folders[:2])
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    with pytest.raises(KeyboardInterrupt):
        trained(method, Tastes(), folders[2], left=33)
    cut = trained(method, Tastes(), folders[2])
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_tables_by_rows_are_trained_as_dense_ones_with_the_same_optimizer(tmp_path: Path) -> None:
    dense = replace(TRAIN, optimizer="adagrad", epochs=2, lr=0.1)
    by_rows = replace(dense, rows=RowWise(optimizer="adagrad", at_least=50))
    (tmp_path / "rows").mkdir()
    one = trained(replace(HOLDING, train=dense), Tastes(), tmp_path)
    other = trained(replace(HOLDING, train=by_rows), Tastes(), tmp_path / "rows")
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_train_one_graph(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("towers_worker.py")
    command = (sys.executable, "-W", "error", str(worker), str(tmp_path))
    environment = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    job = Job(
        name="towers",
        command=command,
        environment=environment,
        resources=Resources(processes=2),
    )
    assert Local().start(job) == 0
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one == two, "both made the same graph"
    table = {"index": np.arange(FIRST_USER, USERS - 5)[:, None]}
    found = Graph.load(tmp_path / "0.onnx").run(Batch(table))
    assert likes((found["items"], None), table["index"][:, 0] % 2).mean() > 0.9
