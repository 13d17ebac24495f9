"""Processes that train apart and meet: the algebra of a meeting, restarts, and what is refused."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from drivetrain.core.seams import Run
from drivetrain.models import MLP
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, DiLoCo, PowerSGD
from drivetrain.train.loop.step import Step
from drivetrain.train.together.outer import Outer

LOSS = BinaryCrossEntropy("y")


class Pair:
    """Group of two threads."""

    size = 2

    def __init__(self) -> None:
        self._meet = threading.Barrier(2, timeout=30)
        self._given: list[Any] = [None, None]
        self._local = threading.local()

    @property
    def rank(self) -> int:
        return self._local.rank

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        self._given[self.rank] = values.clone()
        self._meet.wait()
        found = [given.clone() for given in self._given]
        self._meet.wait()
        return found

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values.copy_(torch.stack(self.gather(values)).sum(0))


def meetings(lr: float, momentum: float, moves: list[tuple[float, float]]) -> list[list[float]]:
    """Where two processes stand after each meeting, which between them moved so far."""
    group = Pair()
    places: list[list[float]] = [[], []]

    def work(rank: int) -> None:
        group._local.rank = rank
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 10.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        step = Step(model, lambda out, _: out.sum(), optimizer, rate=lambda _: 1.0, batch_size=1)
        outer = Outer(step, group, every=1, lr=lr, momentum=momentum)
        for move in moves:
            with torch.no_grad():
                model.weight += move[rank]
            outer.meet()
            places[rank].append(float(model.weight.detach()))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert places[0] == places[1]
    return places[0]


def test_without_momentum_and_with_the_whole_way_weights_are_averaged() -> None:
    assert meetings(1.0, 0.0, [(1.0, 3.0), (-1.0, 0.0)]) == [12.0, 11.5]


def test_the_outer_step_is_sgd_with_nesterovs_momentum() -> None:
    moves = [(1.0, 3.0), (2.0, -1.0), (0.0, 0.0)]
    weight = nn.Parameter(torch.tensor([10.0]))
    outer = torch.optim.SGD([weight], lr=0.7, momentum=0.9, nesterov=True)
    expected: list[float] = []
    for a, b in moves:
        weight.grad = torch.tensor([-(a + b) / 2])
        outer.step()
        expected.append(float(weight.detach()))
    assert meetings(0.7, 0.9, moves) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("way", [{"compression": "PowerSGD"}, {"strategy": {"optimizer": "sgd"}}])
def test_processes_meet_with_equal_weights_and_a_restart_changes_no_bit(
    train: Any, way: dict[str, Any]
) -> None:
    strategy = {"every": 4, "checkpoint_steps": 8, "epochs": 4, **way.get("strategy", {})}
    options = {"kind": "DiLoCo", "model": {"dropout": 0.1}, **way, "strategy": strategy}
    whole = train(2, **options)  # `train` holds that the weights of all are equal
    train(2, "cut", status=128 + signal.SIGKILL, cut={"1": 13, "how": "killed"}, **options)
    again = train(2, "cut", **options)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_process_by_itself_trains_as_it_would_without(made: Any, tmp_path: Path) -> None:
    strategy = DiLoCo(loss=LOSS, epochs=2, batch_size=64, lr=0.02)
    model = build(MLP(hidden=(8,)), made().features, seed=1)
    fitted = strategy.fit(model, made(), Run(directory=tmp_path))
    assert all(p.isfinite().all() for p in fitted.parameters())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"every": 0}, "DiLoCo.every: found 0"),
        ({"outer_lr": 0.0}, "DiLoCo.outer_lr: found 0.0"),
        ({"outer_momentum": 1.0}, "DiLoCo.outer_momentum: found 1.0"),
        ({"average": 0.9}, "DiLoCo.average: found 0.9, allowed: None"),
        ({"validate_every": 30}, "DiLoCo.validate_every: found 30, allowed: a multiple of every"),
    ],
)
def test_an_option_out_of_range_is_refused(options: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DiLoCo(loss=LOSS, compression=PowerSGD(), **options)


@pytest.mark.slow
def test_what_one_process_began_several_go_on_with(train: Any) -> None:
    options = {"kind": "DiLoCo", "strategy": {"every": 4, "checkpoint_steps": 8, "epochs": 4}}
    train(1, "cut", status=128 + signal.SIGKILL, cut={"0": 13, "how": "killed"}, **options)
    weights = train(2, "cut", **options)
    assert weights
    assert all(tensor.isfinite().all() for tensor in weights.values())
