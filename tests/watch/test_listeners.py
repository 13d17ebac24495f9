"""Listeners, checked by reading back what the real libraries stored."""

import math
import threading
from pathlib import Path

import pytest

from drivetrain.core.metric import Metric, Note, Progress, fan_out
from drivetrain.watch.listener import Listener
from drivetrain.watch.listeners import Mlflow, TensorBoard


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_tensorboard_reads_back_every_scalar(tmp_path):
    with TensorBoard(tmp_path, "first") as listener:
        for step in range(2_500):
            listener(Metric(name="train/loss", value=step / 4, step=step))
        listener(Progress(stage="train", done=1))
        listener(Note(stage="train", text="begins"))
        listener(Metric(name="test/auc", value=0.75))
    assert scalars(tmp_path / "first", "train/loss") == [(i, i / 4) for i in range(2_500)]
    assert scalars(tmp_path / "first", "test/auc") == [(0, 0.75)]


def test_a_listener_that_heard_nothing_writes_nothing(tmp_path):
    TensorBoard(tmp_path, "silent").close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_on_a_path_that_is_a_file_warns_once_and_the_run_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    heard: list = []
    with TensorBoard(tmp_path / "file", "run", tell=heard.append) as listener:
        for step in range(5):
            listener(Metric(name="train/loss", value=1.0, step=step))
    (note,) = heard
    assert note.warning
    assert note.text.startswith("TensorBoard stopped listening, the run goes on without it: ")


class Broken(Listener):
    def hear(self, metric: Metric, at: float) -> None:
        raise OSError(28, "No space left on device")


def test_a_broken_listener_keeps_the_others_hearing():
    heard: list = []
    broken = Broken(tell=heard.append)
    items: list = []
    emit = fan_out([broken, items.append])
    for step in range(3):
        emit(Metric(name="a", value=1.0, step=step))
    broken.close()
    assert len(items) == 3
    (note,) = heard
    assert "No space left on device" in note.text


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The address of an empty SQLite store, made once: MLflow takes seconds to make one."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def reading(uri: str):
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


@pytest.mark.slow
def test_mlflow_reads_back_metrics_parameters_and_the_end(store):
    parameters = {
        "train": {"lr": 0.1, "epochs": 3},
        "features": [{"type": "Scale"}],
        "x" * 5: "y" * 9_000,
    }
    with Mlflow(store, experiment="flights", run="one", parameters=parameters) as listener:
        for step in range(2_500):
            listener(Metric(name="train/loss", value=1 / (step + 1), step=step))
        listener(Metric(name="test/drift/psi/dép (h)", value=0.5))
        listener(Metric(name="nothing", value=math.nan))
    client = reading(store)
    experiment = client.get_experiment_by_name("flights")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("one", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(i, 1 / (i + 1)) for i in range(2_500)]
    assert run.data.metrics["test/drift/psi/dép _h_"] == 0.5
    assert math.isnan(run.data.metrics["nothing"])
    assert run.data.params["train.lr"] == "0.1"
    assert run.data.params["features.0.type"] == "Scale"
    assert len(run.data.params["xxxxx"]) == 6_000


@pytest.mark.slow
def test_mlflow_marks_a_run_that_ended_by_an_error_as_failed(store):
    def diverge() -> None:
        with Mlflow(store, "flights", "two") as listener:
            listener(Metric(name="train/loss", value=1.0, step=0))
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        diverge()
    client = reading(store)
    experiment = client.get_experiment_by_name("flights")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs["two"].info.status == "FAILED"
    assert runs["two"].data.metrics == {"train/loss": 1.0}


@pytest.mark.slow
def test_mlflow_without_a_place_for_its_file_warns_once_and_the_run_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    heard: list = []
    with Mlflow(f"sqlite:///{tmp_path}/file/no.db", "flights", tell=heard.append) as listener:
        for step in range(5):
            listener(Metric(name="train/loss", value=1.0, step=step))
    (note,) = heard
    assert note.warning
    assert note.text.startswith("Mlflow stopped listening")
    assert not [thread for thread in threading.enumerate() if thread.name == "mlflow"]
