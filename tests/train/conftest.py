"""Made examples for the tests of training: a seeded table that a model can learn."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from drivetrain.core.batch import Batch
from drivetrain.core.job import Job, Resources
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Order, Shard, Source, Split
from drivetrain.launch.local import Local


class Made:
    """Examples in memory: ``y`` depends on a number, an index and their product."""

    def __init__(self, rows: int = 2000, seed: int = 0, validate: int = 500) -> None:
        self.features = FeatureSchema(
            (
                FeatureField(name="a", kind="dense", width=2),
                FeatureField(name="b", kind="dense"),
                FeatureField(name="c", kind="index", cardinality=7),
                FeatureField(name="d", kind="index", cardinality=5),
                FeatureField(name="words", kind="bag", width=3, cardinality=11),
            )
        )
        self.targets = Schema((Field("y", "int64"), Field("z", "float64")))
        generator = np.random.default_rng(seed)
        self.tables = {
            "train": self._made(rows, generator),
            "validate": self._made(validate, generator),
        }

    @property
    def events(self) -> Source:
        raise AssertionError("the loop needs no events")

    @staticmethod
    def _made(rows: int, generator: np.random.Generator) -> dict[str, Any]:
        dense = generator.normal(size=(rows, 3)).astype(np.float32)
        index = generator.integers(0, (7, 5), (rows, 2))
        score = 2 * dense[:, 0] * (index[:, 0] % 2 - 0.5) + dense[:, 2] + (index[:, 1] == 3)
        z = score + 0.1 * generator.normal(size=rows)
        y = (generator.random(rows) < 1 / (1 + np.exp(-2 * score))).astype(np.int64)
        words = generator.integers(0, 11, (rows, 3))
        return {"dense": dense, "index": index, "words": words, "y": y, "z": z}

    def rows(self, split: Split) -> int | None:
        return len(self.tables[split]["y"])

    def batches(
        self,
        split: Split,
        shard: Shard = Shard(),
        *,
        size: int,
        order: Order | None = None,
        start: int = 0,
    ) -> Iterator[Batch]:
        table = self.tables[split]
        rows = np.arange(len(table["y"]))
        if order is not None:
            np.random.default_rng((order.seed, order.epoch)).shuffle(rows)
        for first in range(start, len(rows), size):
            part = np.array_split(rows[first : first + size], shard.count)[shard.index]
            yield Batch({name: column[part] for name, column in table.items()})

    def take(self, split: Split, rows: Any) -> Batch:
        return Batch({name: column[rows] for name, column in self.tables[split].items()})


@pytest.fixture(scope="session")
def made() -> type[Made]:
    """The class of made examples."""
    return Made


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


WORKER = Path(__file__).with_name("worker.py")
sys.path.append(str(WORKER.parent))  # where the modules lie that tests and workers share
JobOf = Callable[[Path, int, dict[str, Any]], Job]


@pytest.fixture(scope="session")
def job_of() -> JobOf:
    """``job_of(directory, size, options)``: what starts ``worker.py`` in so many processes."""

    def make(directory: Path, size: int, options: dict[str, Any]) -> Job:
        command = (sys.executable, "-W", "error", str(WORKER), str(directory), json.dumps(options))
        environment = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        resources = Resources(processes=size)
        return Job(name="job", command=command, environment=environment, resources=resources)

    return make


@pytest.fixture
def train(job_of: JobOf, tmp_path: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """Trains in ``size`` processes and gives the weights, which are the same in all of them."""

    def start(size: int, name: str = "whole", status: int = 0, **options: Any) -> Any:
        directory = tmp_path / name
        (directory / "run").mkdir(parents=True, exist_ok=True)
        restarts = options.pop("restarts", 0)
        assert Local(restarts=restarts).start(job_of(directory, size, options)) == status
        if status:
            return {}
        files = [directory / f"weights-{rank}.safetensors" for rank in range(size)]
        first, *others = [load_file(file) for file in files]
        for other in others:
            assert all(torch.equal(first[key], other[key]) for key in first)
        return first

    return start
