"""What bench/gpu.py measures, on the CPU and with small models: its parts need no GPU."""

from typing import Any

import pytest
import torch

from bench import gpu
from bench.gpu import TASKS, Task, Way
from drivetrain.models import ConvNet, DeepFM, HuggingFace

WAY = Way(device="cpu", precision="float32", compile=False)
BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL: dict[str, Task] = {
    "deepfm": Task(model=DeepFM(hidden=(8,), dim=4), rows=TASKS["deepfm"].rows, batch=4),
    "conv": Task(model=ConvNet(channels=(4,)), rows=TASKS["conv"].rows, batch=4),
    "transformer": Task(
        model=HuggingFace(config={**BERT, "intermediate_size": 16}),
        rows=lambda rows: gpu.texts(rows, tokens=5, words=50),
        batch=4,
    ),
}


def test_the_models_are_those_that_are_measured() -> None:
    assert SMALL.keys() == TASKS.keys()


@pytest.mark.parametrize("name", SMALL)
def test_each_model_gives_its_figures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    count = gpu.operations
    monkeypatch.setattr(gpu, "operations", lambda *a: counts.append(count(*a)) or counts[-1])
    found = {f["figure"]: f for f in gpu.of_task(name, SMALL[name], WAY, "made H100", 3, 1)}
    kinds = ("samples_per_second", "vs_raw_torch", "mfu", "wait_share")
    assert list(found) == [f"gpu_{name}_{kind}" for kind in kinds]
    assert all("made H100" in each["peer"] for each in found.values())
    rate = found[f"gpu_{name}_samples_per_second"]["value"]
    assert found[f"gpu_{name}_mfu"]["value"] == pytest.approx(counts[0] * rate / 4 / 989e12)
    assert 0 <= found[f"gpu_{name}_wait_share"]["value"] < 1


def test_operations_are_those_of_the_products() -> None:
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(13, 1)

        def forward(self, **inputs: Any) -> Any:
            return self.layer(inputs["dense"]).squeeze(1)

    task = Task(model=Plain, rows=TASKS["deepfm"].rows, batch=10)
    # Forward and the weights' gradient; of its inputs nobody asks for one.
    assert gpu.operations(task, task.rows(10), WAY) == 2 * (2 * 10 * 13)


def test_a_device_whose_peak_is_not_known_has_no_utilisation() -> None:
    found = list(gpu.of_task("conv", SMALL["conv"], WAY, "made", 1, 1))
    assert not any("mfu" in each["figure"] for each in found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="figures are absent where there is no GPU")
def test_without_a_gpu_nothing_is_guessed() -> None:
    assert list(gpu.figures(quick=True)) == []
