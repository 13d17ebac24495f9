"""Models of Keras and Flax, trained where those are installed: they answer what the frameworks do.

TensorFlow and JAX are many packages, which the tests' own environment need not have: so they lie in
one of their own, in front of which this one's packages are found, and a script there tells in JSON
what came of each training.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import drivetrain as dt

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("elsewhere_worker.py")
FRAMEWORKS = ("keras-tensorflow", "keras-jax", "keras-torch", "flax")
KERAS = FRAMEWORKS[:3]
RESUMED = ("keras-tensorflow", "flax")
TOLERANCE = 1e-5
"""Of a probability. The largest difference that was seen is a tenth of it."""


@pytest.fixture(scope="module")
def work(environment: Any, tmp_path_factory: Any, make_events: Any) -> Callable[..., Any]:
    """``work(framework, kind)``: what the worker said, or how it ended where it was killed."""
    pins = Path(__file__).with_name("frameworks.txt")
    python = environment("frameworks", "--no-deps", pins, constraints=True)
    folder = tmp_path_factory.mktemp("elsewhere")
    pq.write_table(make_events(), folder / "events.parquet")
    paths = os.pathsep.join((str(ROOT), sysconfig.get_path("purelib")))
    variables = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    variables.pop("KERAS_BACKEND", None)

    def start(framework: str, kind: str) -> Any:
        command = [python, WORKER, framework, kind, folder / framework, folder / "events.parquet"]
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=900, cwd=folder
        )
        if kind == "killed":
            return done.returncode, done.stderr
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return start


@pytest.fixture(scope="module")
def told(work: Callable[..., Any]) -> dict[str, Any]:
    """What the worker said of each framework, two at a time."""

    def chain(*frameworks: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for framework in frameworks:
            if framework in RESUMED:
                found[f"{framework} killed"] = work(framework, "killed")
            found[framework] = work(framework, "all")
        return found

    with ThreadPoolExecutor(2) as pool:
        chains = (pool.submit(chain, *names) for names in (FRAMEWORKS[:1], FRAMEWORKS[1:]))
        return {key: value for each in list(chains) for key, value in each.result().items()}


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_bundle_answers_what_the_framework_does(told: Any, framework: str) -> None:
    found = told[framework]["parity"]
    assert found["rows"] > 100
    assert found["spread"] > 0.5, "it learned something that could differ"
    assert found["difference"] < TOLERANCE
    assert found["outputs"] == ["bad"]
    assert found["auc"] > 0.7
    assert found["kept"] == {"compress/optimize-extended/kept": 1.0}
    assert found["steps"] == 3, "it was validated after each epoch"


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_loss_is_that_of_torch(told: Any, framework: str) -> None:
    assert len(told[framework]["losses"]) == 6
    assert max(told[framework]["losses"]) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("framework", RESUMED)
def test_a_killed_training_ends_with_the_same_bits(told: Any, framework: str) -> None:
    status, error = told[f"{framework} killed"]
    assert status == -9, error
    found = told[framework]["resumed"]
    # The last checkpoint before the kill was being written, and may not have become whole.
    assert re.match(r"resumed at step (21|28), epoch 1, batch (5|12)$", found["notes"][0])
    assert found["equal"], found["difference"]
    assert found["read"], "a training that has ended is not run again"
    assert found["answers"]
    # Keras numbers its layers in a process, and so names the second model's nodes otherwise.
    assert found["graph"] or framework.startswith("keras")
    assert found["files"] == ["final"]


@pytest.mark.slow
@pytest.mark.parametrize("framework", RESUMED)
def test_a_training_that_gets_no_better_stops_with_its_best_weights(
    told: Any, framework: str
) -> None:
    found = told[framework]["stopped"]
    assert 1 < found["epochs"] < 40
    assert found["served"] == pytest.approx(found["best"], rel=1e-5)


@pytest.mark.slow
def test_two_replicas_do_what_one_device_does(told: Any) -> None:
    found = told["keras-tensorflow"]["mirrored"]
    assert found["replicas"] == 2
    assert found["last_batch"] == 13, "it divides unevenly"
    assert found["difference"] < 1e-5
    assert found["single_row"] < 1e-6
    assert found["outputs"] == ["y"]


@pytest.mark.slow
def test_pooled_images_are_served_or_refused_with_the_reason(told: Any) -> None:
    assert told["keras-tensorflow"]["images"] == ""
    assert told["keras-torch"]["images"] == ""
    text = told["keras-jax"]["images"]
    assert "pooled" in text
    assert "backend='tensorflow'" in text


@pytest.mark.slow
@pytest.mark.parametrize("framework", KERAS)
def test_a_mistake_in_a_keras_model_is_named(told: Any, framework: str) -> None:
    found = told[framework]["mistakes"]
    assert "Keras imported with" in found["backend"]
    assert "KERAS_BACKEND=" in found["backend"]
    assert "inputs named after features" in found["sequential"]
    assert "Did you mean 'dense'?" in found["misnamed"]
    assert "enters no parameter" in found["incomplete"]
    assert "keras.Model" in found["no model"]


@pytest.mark.slow
def test_a_mistake_in_a_flax_module_is_named(told: Any) -> None:
    found = told["flax"]["mistakes"]
    assert "Did you mean 'dense'?" in found["misnamed"]
    assert "flax.nnx.Module" in found["no model"]


# -- where no framework is installed ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"backend": "tensorflwo"}, "Did you mean 'tensorflow'"),
        ({"backend": "jax", "distribute": "mirrored"}, "TensorFlow mirrors models"),
        ({"distribute": "miror"}, "Keras.distribute"),
        ({"devices": ("GPU:0",)}, "distribute='mirrored'"),
        ({"optimizer": "adamm"}, "Did you mean 'adam"),
        ({"epochs": 0}, "Keras.epochs"),
        ({"lr": 0.0}, "Keras.lr"),
        ({"checkpoint_steps": 0}, "Keras.checkpoint_steps"),
    ],
)
def test_a_declaration_is_checked(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        dt.Keras(loss=dt.BinaryCrossEntropy("y"), **options)


def test_a_declaration_imports_no_framework() -> None:
    code = (
        "import sys, drivetrain as dt; dt.Keras(loss=dt.BinaryCrossEntropy('y')); "
        "dt.Flax(loss=dt.BinaryCrossEntropy('y')); "
        "print({'torch', 'keras', 'jax', 'tensorflow', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


def test_a_loss_that_is_written_for_torch_alone_is_refused() -> None:
    from drivetrain.train.distill import Distill
    from drivetrain.train.foreign.native import in_jax, in_keras

    loss = object.__new__(Distill)
    for native in (in_keras, in_jax):
        with pytest.raises(ValueError, match="found 'Distill', allowed: BinaryCrossEntropy"):
            native(loss)
