"""A training that compiles nothing imports no compiler; its optimizers are torch's all the same."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from drivetrain.train.loop import uncompiled
from drivetrain.train.loop.repeatable import repeatable

TRAINING = """
import sys
from dataclasses import replace
from pathlib import Path
from conftest import Made
from drivetrain.core.seams import Run
from drivetrain.models import MLP
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, Single
for optimizer in ("adamw", "sgd", "adagrad"):
    strategy = Single(
        loss=BinaryCrossEntropy("y"), optimizer=optimizer, average=0.9, checkpoint_steps=2,
        clip_norm=1.0, batch_size=64,
    )
    examples = Made(300)
    model = build(MLP(hidden=(4,)), examples.features, seed=0)
    strategy.fit(model, examples, Run(directory=Path(sys.argv[1]) / optimizer))
print(*[name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def test_a_training_imports_no_compiler(tmp_path: Path) -> None:
    here = {"PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(tmp_path)],
        capture_output=True, text=True, check=False, env={**here, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (uncompiled.SGD, torch.optim.SGD, {"momentum": 0.9, "foreach": True}),
        (uncompiled.Adagrad, torch.optim.Adagrad, {"fused": True}),
    ],
)
def test_the_bits_and_the_state_are_those_of_torch(ours: type, theirs: type, options: dict) -> None:
    ends: list[list[torch.Tensor]] = []
    for kind in (ours, theirs):
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        optimizer = kind(model.parameters(), lr=0.1, **options)
        called: list[int] = []
        optimizer.register_step_post_hook(lambda *_, c=called: c.append(1))
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 5)).square().mean().backward()
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        assert len(called) == 4
        held = [t for slots in optimizer.state_dict()["state"].values() for t in slots.values()]
        ends.append([*model.parameters(), *(t for t in held if isinstance(t, torch.Tensor))])
    assert all(map(torch.equal, *ends))


def test_a_compiler_that_is_used_is_told_what_is_deterministic() -> None:
    with repeatable(0, "cpu", compiles=True):
        import torch._inductor.config as config

        assert config.deterministic
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not config.deterministic
    assert not torch.are_deterministic_algorithms_enabled()
