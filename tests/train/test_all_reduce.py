"""Several processes train one model: the same updates as one, and nothing hangs or is lost."""

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drivetrain.core.job import LOST
from drivetrain.core.seams import Run
from drivetrain.core.world import World
from drivetrain.launch.local import Local
from drivetrain.models import MLP
from drivetrain.models.bind import build
from drivetrain.train import AllReduce, BinaryCrossEntropy, Single

pytestmark = pytest.mark.slow
RANDOM = {"dropout": 0.2, "norm": "batch"}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def seen(directory: Path) -> np.ndarray:
    """What was trained on since the last look, sorted."""
    parts: list[np.ndarray] = []
    for file in directory.glob("seen-*"):
        parts.append(np.fromfile(file, np.float32))
        file.unlink()
    return np.sort(np.concatenate(parts))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_any_number_of_processes_trains_as_one(
    train: Any, made: Any, tmp_path: Path, accumulate: int
) -> None:
    examples = made(1003)
    single = Single(
        loss=BinaryCrossEntropy("y"), epochs=3, batch_size=64, lr=0.02, accumulate=accumulate
    )
    model = build(MLP(hidden=(16,), dim=4), examples.features, seed=1)
    expected = single.fit(model, examples, Run(directory=tmp_path / "single")).state_dict()
    for size in (2, 3):
        found = train(size, f"of {size}", strategy={"accumulate": accumulate})
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=2e-4, atol=2e-5)


def test_a_batch_with_fewer_rows_than_processes_counts_its_rows_once(train: Any) -> None:
    one, three = (train(size, f"of {size}", rows=65) for size in (1, 3))  # a last batch of 1
    for name, tensor in one.items():
        torch.testing.assert_close(three[name], tensor, rtol=2e-4, atol=2e-5)


def test_an_interrupted_training_ends_with_the_same_bits(train: Any) -> None:
    options = {"model": RANDOM, "strategy": {"checkpoint_steps": 4, "average": 0.9}}
    whole = train(2, **options)
    cut = {"cut": {"1": 11, "how": "killed"}}
    train(2, "cut", status=128 + signal.SIGKILL, **options, **cut)
    assert same(whole, train(2, "cut", **options))


def test_one_that_is_asked_to_end_ends_all_behind_a_checkpoint(train: Any, tmp_path: Path) -> None:
    strategy = {"checkpoint_seconds": None}
    options = {"model": RANDOM, "agree_seconds": 0, "strategy": strategy}
    whole = train(2, **options)
    train(2, "cut", status=LOST, cut={"1": 9, "how": "asked"}, **options)
    for rank in (0, 1):
        text = (tmp_path / "cut" / f"lost-{rank}").read_text()
        assert text.startswith("the training was asked to end and did, after step ")
    (kept,) = (tmp_path / "cut" / "run").glob("*.safetensors")
    assert int(kept.name.split("-")[1]) == 10
    assert same(whole, train(2, "cut", **options))


def test_what_a_compression_owes_survives_an_interruption(train: Any, tmp_path: Path) -> None:
    options = {"compression": "PowerSGD", "strategy": {"checkpoint_steps": 4, "epochs": 2}}
    whole = train(2, **options)
    train(2, "cut", status=128 + signal.SIGKILL, cut={"0": 11, "how": "killed"}, **options)
    shutil.copytree(tmp_path / "cut", tmp_path / "shared")
    assert same(whole, train(2, "cut", **options))
    three = train(3, "shared", **options)  # who goes on share what the two owed
    for name, tensor in whole.items():
        torch.testing.assert_close(three[name], tensor, rtol=0.2, atol=0.05)


def test_another_number_of_processes_sees_exactly_the_rows_that_were_left(
    train: Any, tmp_path: Path
) -> None:
    strategy = {"epochs": 1, "checkpoint_steps": 5}
    train(1, strategy={"epochs": 1})
    every = seen(tmp_path / "whole")
    # Not the leader, which was just told to write a checkpoint and does so behind its back.
    cut = {"cut": {"1": 5, "how": "killed"}}
    train(2, "cut", status=128 + signal.SIGKILL, strategy=strategy, **cut)
    first = seen(tmp_path / "cut")
    train(3, "cut", strategy=strategy)
    rest = seen(tmp_path / "cut")
    # Rank 0 may have read on before it noticed: of its rows those before the checkpoint count.
    assert len(rest) == 1003 - 5 * 64
    begun = every[~np.isin(every, rest)]
    assert len(begun) == 5 * 64
    assert np.isin(begun, first).all()


def test_who_loses_the_others_says_so_and_ends(train: Any, tmp_path: Path) -> None:
    train(3, "cut", status=128 + signal.SIGKILL, cut={"2": 3, "how": "killed"})
    for rank in (0, 1):
        text = (tmp_path / "cut" / f"lost-{rank}").read_text()
        assert text.startswith(f"rank {rank} of 3 waited for the others in vain: ")


def test_nobody_waits_longer_than_was_said_for_one_that_stands_still(
    job_of: Any, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    options = {"strategy": {"wait_seconds": 15}, "cut": {"1": 3, "how": "stopped"}}
    begin = time.monotonic()
    assert Local(grace=0.5).start(job_of(tmp_path, 2, options)) == LOST
    assert time.monotonic() - begin < 60
    assert "in vain" in (tmp_path / "lost-0").read_text()


def test_processes_that_do_not_come_are_not_waited_for(made: Any, tmp_path: Path) -> None:
    strategy = AllReduce(loss=BinaryCrossEntropy("y"), wait_seconds=1)
    world = World(rank=1, size=2, port=1)
    model = build(MLP(hidden=(4,)), made().features, seed=0)
    with pytest.raises(ConnectionError, match=r"rank 1: found fewer than 2 processes at 127"):
        strategy.fit(model, made(), Run(directory=tmp_path, world=world))


def test_one_process_by_itself_needs_no_group(train: Any, made: Any, tmp_path: Path) -> None:
    strategy = AllReduce(loss=BinaryCrossEntropy("y"), epochs=3, batch_size=64, lr=0.02)
    model = build(MLP(hidden=(16,), dim=4), made(1003).features, seed=1)
    alone = strategy.fit(model, made(1003), Run(directory=tmp_path / "alone")).state_dict()
    assert same(train(1), dict(alone))


def test_a_strategy_of_one_process_refuses_several(made: Any, tmp_path: Path) -> None:
    model = build(MLP(hidden=(4,)), made().features, seed=0)
    run = Run(directory=tmp_path, world=World(size=2))
    with pytest.raises(ValueError, match="processes of Single: found 2, allowed: 1; AllReduce"):
        Single(loss=BinaryCrossEntropy("y")).fit(model, made(), run)
    with pytest.raises(ValueError, match=r"AllReduce.batch_size: found 1, allowed: 2, a row for"):
        AllReduce(loss=BinaryCrossEntropy("y"), batch_size=1).fit(model, made(), run)


def test_random_kills_cost_work_but_no_bit(train: Any, tmp_path: Path) -> None:
    options = {"model": RANDOM, "rows": 4003, "strategy": {"epochs": 6, "checkpoint_steps": 10}}
    whole = train(2, **options)
    kills, ended = [0], threading.Event()
    killer = threading.Thread(target=kill_at_random, args=(tmp_path / "killed", 5, kills, ended))
    killer.start()
    try:
        survived = train(2, "killed", restarts=20, **options)
    finally:
        ended.set()
        killer.join()
    assert kills[0] == 5
    assert same(whole, survived)


def kill_at_random(directory: Path, count: int, kills: list[int], ended: threading.Event) -> None:
    """Kill a worker each time that they have trained on some more rows, and not by the clock."""
    generator = random.Random(0)
    known = trained(directory)
    more = generator.randint(500, 3000)
    while kills[0] < count and not ended.wait(0.005):
        now = trained(directory)
        if sum(now.values()) - sum(known.values()) < more:
            continue
        with contextlib.suppress(ProcessLookupError):  # it had ended since it was last seen
            os.kill(generator.choice([pid for pid in now if now[pid] > known.get(pid, 0)]), 9)
            kills[0] += 1
        known, more = now, generator.randint(500, 3000)


def trained(directory: Path) -> dict[int, int]:
    """The rows that each process has trained on, by its id."""
    return {
        int(file.name.removeprefix("seen-")): file.stat().st_size // 4
        for file in directory.glob("seen-*")
    }
