"""Tables on servers: the same training as in one process, in bounded memory, whoever dies."""

import dataclasses
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from drivetrain.core.batch import Batch
from drivetrain.core.job import LOST
from drivetrain.core.seams import Run
from drivetrain.launch.local import Local
from drivetrain.models import DCNv2, DeepFM
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, EarlyStopping, ParameterServer, Single
from drivetrain.train.export import export
from drivetrain.train.rows import gathered
from drivetrain.train.rows.remote_embedding import RemoteEmbedding, SeenEmbedding

LOSS = BinaryCrossEntropy("y")
OPTIONS: dict[str, Any] = {"loss": LOSS, "epochs": 2, "batch_size": 64, "lr": 0.05}
Weights = dict[str, torch.Tensor]


def close(one: Weights, two: Weights) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_without_staleness_it_trains_as_one_process(
    made: Any, tmp_path: Path, optimizer: Any, accumulate: int
) -> None:
    options = {**OPTIONS, "optimizer": optimizer, "accumulate": accumulate}
    factory, examples = DeepFM(hidden=(16,), dim=4), made(1003)
    single = Single(**options).fit(
        build(factory, examples.features, seed=1), examples, Run(directory=tmp_path / "single")
    )
    server = ParameterServer(**options, at_least=20, row_optimizer=optimizer)
    model = build(factory, examples.features, seed=1)
    fitted = server.fit(model, examples, Run(directory=tmp_path / "server"))
    close(dict(single.state_dict()), dict(fitted.state_dict()))


def test_tables_that_its_modules_foretell_nothing_of_train_too(made: Any, tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.d = nn.Embedding(30, 4), nn.Embedding(40, 4)
            self.out = nn.Linear(4 + 3 + 12, 1)

        def forward(self, dense: Any, index: Any, words: Any) -> Any:
            fields = self.c(index[:, 0]) * self.d(index[:, 1])
            return self.out(torch.cat([fields, dense, self.c(words).flatten(1)], 1)).squeeze(1)

    examples, fitted = made(500), []
    options = {**OPTIONS, "optimizer": "sgd"}
    server = ParameterServer(**options, at_least=20, row_optimizer="sgd")
    for strategy in (Single(**options), server):
        model = build(Net, examples.features, seed=1)
        run = Run(directory=tmp_path / type(strategy).__name__)
        fitted.append(dict(strategy.fit(model, examples, run).state_dict()))
    close(*fitted)


def test_small_tables_stay_where_they_are(made: Any, tmp_path: Path) -> None:
    examples = made(300)
    single, server = Single(**OPTIONS), ParameterServer(**OPTIONS, at_least=24)
    weights = []
    for strategy in (single, server):
        model = build(DeepFM(hidden=(16,), dim=4), examples.features, seed=1)
        run = Run(directory=tmp_path / type(strategy).__name__)
        weights.append(dict(strategy.fit(model, examples, run).state_dict()))
    close(*weights)


@pytest.mark.parametrize("name", ["rowwise_adagrad", "adam"])
def test_rows_that_may_lack_an_update_still_learn(made: Any, tmp_path: Path, name: Any) -> None:
    losses: dict[str, float] = {}
    strategy = ParameterServer(
        **{**OPTIONS, "epochs": 4}, at_least=20, staleness=1, row_optimizer=name, row_lr=0.1
    )
    model = strategy.build(DeepFM(hidden=(16,), dim=4), made().features, seed=0)

    def listen(event: Any) -> None:
        if getattr(event, "name", "") == "validate/loss":
            losses[str(len(losses))] = event.value

    strategy.fit(model, made(), Run(directory=tmp_path, emit=listen))
    assert list(losses.values())[-1] < 0.6 < np.log(2)


class Sparse:
    """Examples of a large table, of whose ids few are ever seen."""

    def __init__(self, made: Any, cardinality: int, rows: int = 640) -> None:
        self._made = made(rows)
        field = dataclasses.replace(self._made.features.field("c"), cardinality=cardinality)
        others = [f for f in self._made.features.features if f.name != "c"]
        self.features = type(self._made.features)((*others[:2], field, *others[2:]))
        self.targets = self._made.targets
        self.seed = 0

    @property
    def events(self) -> Any:
        return self._made.events

    def rows(self, split: Any) -> int | None:
        return self._made.rows(split)

    def batches(self, split: Any, *args: Any, **more: Any) -> Any:
        for batch in self._made.batches(split, *args, **more):
            index = batch["index"].copy()
            index[:, 0] = index[:, 0] * 12_345 + 3 + (split == "validate")
            yield Batch({**batch.columns, "index": index})


def test_only_rows_that_were_seen_are_held(made: Any, tmp_path: Path) -> None:
    examples = Sparse(made, 10_000_000)
    strategy = ParameterServer(**OPTIONS)
    model = strategy.build(DeepFM(hidden=(16,), dim=16), examples.features, seed=0)
    assert sum(p.numel() for p in model.parameters()) < 5_000
    assert [m.shape.rows for m in remote(model)] == [10_000_016] * 2
    fitted = strategy.fit(model, examples, Run(directory=tmp_path))
    # Validation looks at rows that training never saw, and brings none of them into being.
    seen = [m for m in fitted.modules() if isinstance(m, SeenEmbedding)]
    assert [m.weight.shape for m in seen] == [(1 + 7 + 5 + 11, 1), (1 + 7 + 5 + 11, 16)]
    assert [int((m.places > 0).sum()) for m in seen] == [23, 23]
    files = [path.stat().st_size for path in tmp_path.glob("rows-*")]
    assert max(files) < 20_000


def test_an_id_that_was_never_seen_is_served_the_mean_of_first_values(
    made: Any, tmp_path: Path
) -> None:
    examples = Sparse(made, 200_000)
    strategy = ParameterServer(**OPTIONS, at_least=1000)
    model = strategy.build(DeepFM(hidden=(16,), dim=4), examples.features, seed=0)
    fitted = strategy.fit(model, examples, Run(directory=tmp_path))
    (table, *_) = [
        m for m in fitted.modules() if isinstance(m, SeenEmbedding) and m.weight.shape[1] == 4
    ]
    ids = torch.tensor([3, 1_234_567 % 200_000 + 9])
    assert table(ids)[0].abs().sum() > 0
    assert torch.equal(table(ids)[1], torch.zeros(4))
    graph = export(fitted, examples.features, strategy.predictions)  # held against torch there
    assert "index" in [value.name for value in graph.proto.graph.input]


def test_rows_that_do_not_fit_into_a_graph_are_refused(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathered, "MOST_BYTES", 1000)
    strategy = ParameterServer(**OPTIONS, at_least=20)
    model = strategy.build(DeepFM(hidden=(16,), dim=16), made(100).features, seed=0)
    refused = r"table 'module\.tables\.table', of which training saw 23 rows of 16.* found '0 MiB'"
    with pytest.raises(ValueError, match=refused):
        strategy.fit(model, made(100), Run(directory=tmp_path))


def test_a_training_that_has_ended_is_read(made: Any, tmp_path: Path) -> None:
    strategy = ParameterServer(**OPTIONS, at_least=20)
    fitted = [
        strategy.fit(
            strategy.build(DCNv2(hidden=(16,), dim=4), made(300).features, seed=0),
            made(300),
            Run(directory=tmp_path),
        ).state_dict()
        for _ in range(2)
    ]
    assert all(torch.equal(fitted[0][name], tensor) for name, tensor in fitted[1].items())
    assert sorted(p.name.split("-")[0] for p in tmp_path.iterdir()) == ["final", "rows"]


def test_a_damaged_snapshot_is_named(made: Any, tmp_path: Path) -> None:
    strategy = ParameterServer(**OPTIONS, at_least=20)

    def fit() -> None:
        model = strategy.build(DeepFM(hidden=(16,), dim=4), made(300).features, seed=0)
        strategy.fit(model, made(300), Run(directory=tmp_path))

    fit()
    (path,) = tmp_path.glob("rows-*")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(OSError, match=r"snapshot rows-final-0of1-.* of rows is damaged"):
        fit()


def test_what_needs_all_rows_at_once_is_refused() -> None:
    for name, value in (
        ("average", 0.9),
        ("early_stopping", EarlyStopping()),
        ("clip_norm", 1.0),
        ("embedding_decay", 0.1),
        ("at_least", 0),
        ("staleness", -1),
        ("row_lr", 0.0),
    ):
        with pytest.raises(ValueError, match=rf"ParameterServer\.{name}: found"):
            ParameterServer(**{"loss": LOSS, name: value})
    with pytest.raises(ValueError, match=r"'adagrat'.* Did you mean 'adagrad'"):
        ParameterServer(loss=LOSS, row_optimizer="adagrat")  # pyright: ignore[reportArgumentType]


def test_a_large_matrix_that_is_no_plain_table_is_refused(made: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(300, 4, padding_idx=0)

        def forward(self, dense: Any, index: Any, words: Any) -> Any:
            return self.table(index).sum((1, 2))

    with pytest.raises(ValueError, match=r"table 'module\.table\.weight' of 300 rows"):
        ParameterServer(loss=LOSS, at_least=100).build(Net, made(10).features)


def remote(model: nn.Module) -> list[RemoteEmbedding]:
    return [module for module in model.modules() if isinstance(module, RemoteEmbedding)]


# -- several processes -----------------------------------------------------------------------------


@pytest.fixture
def train_rows(job_of: Any, tmp_path: Path) -> Callable[..., Weights]:
    """Trains in ``size`` processes; the leader's weights."""
    worker = Path(__file__).with_name("rows_worker.py")

    def start(size: int, name: str = "whole", status: int = 0, **options: Any) -> Weights:
        directory = tmp_path / name
        (directory / "run").mkdir(parents=True, exist_ok=True)
        job = job_of(directory, size, options)
        command = tuple(str(worker) if part.endswith("worker.py") else part for part in job.command)
        job = dataclasses.replace(job, command=command)
        restarts = options.pop("restarts", 0)
        assert Local(restarts=restarts, grace=0.5).start(job) == status
        return {} if status else load_file(directory / "weights.safetensors")

    return start


@pytest.mark.slow
def test_any_number_of_servers_trains_as_one_process(
    train_rows: Any, made: Any, tmp_path: Path
) -> None:
    examples = made(1003)
    single = Single(
        **{**OPTIONS, "epochs": 3, "optimizer": "adagrad"},
    ).fit(
        build(DeepFM(hidden=(16,), dim=4), examples.features, seed=1),
        examples,
        Run(directory=tmp_path / "single"),
    )
    for size in (2, 3):
        close(dict(single.state_dict()), train_rows(size, f"of {size}"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_with_its_server_costs_no_bit(
    train_rows: Any, tmp_path: Path, rank: int
) -> None:
    options = {"unmade": True, "strategy": {"checkpoint_steps": 4}}
    whole = train_rows(2, **options)
    cut = {"cut": {str(rank): 11, "how": "killed"}}
    train_rows(2, "cut", status=128 + signal.SIGKILL, **options, **cut)
    other = (tmp_path / "cut" / f"lost-{1 - rank}").read_text()
    assert other.startswith(f"rank {1 - rank} ")
    again = train_rows(2, "cut", **options)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_another_number_of_servers_goes_on_with_the_rows_that_were_left(
    train_rows: Any, tmp_path: Path
) -> None:
    options = {"unmade": True, "strategy": {"epochs": 1, "checkpoint_steps": 5}}
    whole = train_rows(1, **options)
    cut = {"cut": {"0": 7, "how": "killed"}}
    train_rows(3, "cut", status=128 + signal.SIGKILL, **options, **cut)
    for file in (tmp_path / "cut").glob("seen-*"):
        file.unlink()
    again = train_rows(2, "cut", **options)
    rest = sum(len(np.fromfile(p, np.float32)) for p in (tmp_path / "cut").glob("seen-*"))
    assert rest == 1003 - 5 * 64
    # Rows lie in the order in which shards held them, so they are compared by id.
    for name in [name for name in whole if not name.endswith("table.weight")]:
        torch.testing.assert_close(again[name], whole[name], rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_one_that_stands_still_is_named_in_time(train_rows: Any, tmp_path: Path) -> None:
    begin = time.monotonic()
    strategy = {"wait_seconds": 15, "staleness": 1}
    train_rows(2, "cut", status=LOST, strategy=strategy, cut={"1": 3, "how": "stopped"})
    assert time.monotonic() - begin < 60
    assert "in vain" in (tmp_path / "cut" / "lost-0").read_text()
