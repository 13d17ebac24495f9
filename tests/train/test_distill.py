"""What a student learns from a teacher, and what a teacher must be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from drivetrain.core.batch import Batch
from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import Graph
from drivetrain.core.schema import Field, Schema
from drivetrain.core.seams import Run, Shard
from drivetrain.models import LogisticRegression
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, CrossEntropy, MeanSquaredError, Single
from drivetrain.train.distill import Distill, Taught

BCE = BinaryCrossEntropy("y")


def doubling(path: Path, output: str = "y", power: float = 1.0) -> Bundle:
    """A made teacher: the sigmoid of twice the column ``score`` to a power."""
    make, info = helper.make_node, helper.make_tensor_value_info
    nodes = [
        make("Pow", ["score", "power"], ["raised"]),
        make("Mul", ["raised", "two"], ["logit"]),
        make("Sigmoid", ["logit"], [output]),
    ]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [info("score", TensorProto.FLOAT, ["rows"])],
        [info(output, TensorProto.FLOAT, ["rows"])],
        [
            helper.make_tensor("two", TensorProto.FLOAT, [], [2.0]),
            helper.make_tensor("power", TensorProto.FLOAT, [], [power]),
        ],
    )
    made = Graph.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    inputs, outputs = Schema((Field("score", "float32"),)), Schema((Field(output, "float32"),))
    return Bundle.write(path, made, Manifest(name="made", inputs=inputs, outputs=outputs), {})


class Rows:
    """A source of one batch."""

    def __init__(self, **columns: np.ndarray) -> None:
        self.schema = Schema(tuple(Field(n, str(c.dtype)) for n, c in columns.items()))  # pyright: ignore[reportArgumentType]
        self.batch = Batch(columns)

    def batches(self, split: Any, shard: Shard = Shard()) -> Any:
        yield self.batch


# -- the loss --------------------------------------------------------------------------------------


def test_a_teacher_that_answers_probabilities_is_softened_as_its_logits_would_be() -> None:
    generator = torch.Generator().manual_seed(0)
    student, logits = torch.randn(2, 50, 4, generator=generator)
    several = CrossEntropy("y").toward(student, logits.softmax(-1), 3.0)
    soft = (logits / 3).softmax(-1)
    expected = -9 * (soft * (student / 3).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(several, expected)
    two = torch.stack([torch.zeros(50), student[:, 0]], 1)
    one = BCE.toward(student[:, 0], logits[:, 0].sigmoid(), 3.0)
    pair = torch.stack([torch.zeros(50), logits[:, 0]], 1)
    torch.testing.assert_close(one, CrossEntropy("y").toward(two, pair.softmax(-1), 3.0))


@pytest.mark.parametrize(
    ("hard", "outputs", "teacher"),
    [
        (BCE, (6, 3), torch.tensor([0.0, 1.0, 0.5, 0.2, 0.9, 0.1])),
        (CrossEntropy("y"), (6, 3, 4), torch.eye(4)[[0, 1, 2, 3, 0, 1]]),
        (MeanSquaredError("y"), (6, 3), torch.arange(6.0)),
    ],
)
def test_each_member_of_an_ensemble_learns_from_the_teacher(
    hard: Any, outputs: tuple[int, ...], teacher: torch.Tensor
) -> None:
    made = torch.randn(outputs, generator=torch.Generator().manual_seed(0))
    of_each = [hard.toward(made[:, member], teacher) for member in range(3)]
    whole = hard.toward(made, teacher)
    assert whole.isfinite()  # also where the teacher is quite sure
    torch.testing.assert_close(whole, torch.stack(of_each).mean())


def test_the_weight_blends_and_the_truth_alone_is_scored(tmp_path: Path) -> None:
    doubling(tmp_path / "teacher")
    loss = Distill(BCE, teacher=tmp_path / "teacher", weight=0.25, temperature=2.0)
    logits = torch.tensor([0.3, -2.0])
    targets = {"y": torch.tensor([1, 0]), "teacher/y": torch.tensor([0.9, 0.4])}
    expected = 0.75 * BCE(logits, targets) + 0.25 * BCE.toward(logits, targets["teacher/y"], 2.0)
    torch.testing.assert_close(loss(logits, targets), expected)
    assert loss.scores(logits, targets) == BCE.scores(logits, targets)
    assert torch.equal(loss.predictions(logits)["y"], logits.sigmoid())


def test_the_teacher_is_declared_by_its_content_and_not_its_place(tmp_path: Path) -> None:
    bundle = doubling(tmp_path / "one")
    doubling(tmp_path / "two")
    bundle.pack(tmp_path / "packed.bundle")
    doubling(tmp_path / "other", power=3.0)
    from drivetrain.core.describe import describe

    one, two, packed, other = (
        describe(Distill(BCE, teacher=tmp_path / name))
        for name in ("one", "two", "packed.bundle", "other")
    )
    assert one == two == packed != other
    assert one["teacher"] == bundle.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.5}, "Distill.weight: found 1.5"),
        ({"temperature": 0.0}, "Distill.temperature: found 0.0"),
        ({"hard": MeanSquaredError("y"), "temperature": 2.0}, "1 for MeanSquaredError"),
        ({"hard": lambda outputs, targets: outputs.mean()}, "one with toward"),
    ],
)
def test_what_can_not_be_blended_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distill(**{"hard": BCE, "teacher": "nowhere", **options})


# -- the teacher's answers -------------------------------------------------------------------------


def test_the_teacher_answers_every_row_in_order(tmp_path: Path) -> None:
    doubling(tmp_path / "teacher")
    score = np.linspace(-2, 2, 2500, dtype=np.float32)  # in several chunks
    taught = Distill(BCE, teacher=tmp_path / "teacher").taught(Rows(score=score))
    (batch,) = taught.batches("train")
    np.testing.assert_allclose(batch["teacher/y"], 1 / (1 + np.exp(-2 * score)), rtol=1e-5)
    assert taught.schema.names == ("score", "teacher/y")
    (empty,) = Taught(Rows(score=score[:0]), taught.teacher, "y", "t").batches("train")
    assert empty["t"].shape == (0,)


def test_a_teacher_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "teacher"
    doubling(path, power=0.5)
    with pytest.raises(ValueError, match="unknown column 'score'"):
        Distill(BCE, teacher=path).taught(Rows(x=np.zeros(3, np.float32)))
    with pytest.raises(ValueError, match="'score' of the events: found 'int64', allowed: float32"):
        Distill(BCE, teacher=path).taught(Rows(score=np.zeros(3, np.int64)))
    with pytest.raises(ValueError, match="unknown output 'yy'"):
        _ = Distill(BCE, teacher=path, output="yy").bundle
    with pytest.raises(ValueError, match=r"Distill\.output: found None, allowed: one of y"):
        _ = Distill(BinaryCrossEntropy("z"), teacher=path).bundle
    with pytest.raises(FileNotFoundError, match="no bundle at"):
        _ = Distill(BCE, teacher=tmp_path / "nowhere").bundle
    root = Distill(BCE, teacher=path).taught(Rows(score=np.array([1.0, -1.0], np.float32)))
    with pytest.raises(ValueError, match="row 1 of a batch: found nan"):
        list(root.batches("train"))


# -- what it is for --------------------------------------------------------------------------------


def test_a_student_of_few_rows_gains_much_from_a_strong_teacher(made: Any, tmp_path: Path) -> None:
    """The made teacher knows the chances that the few noisy labels were drawn from."""
    doubling(tmp_path / "teacher")
    loss = Distill(BCE, teacher=tmp_path / "teacher", weight=1.0)
    strategy = Single(loss=BCE, epochs=150, batch_size=64, lr=0.05)

    def learnt(strategy: Single, seed: int) -> float:
        """How far the student's chances are from the true ones, on rows that it never saw."""
        examples = made(rows=60, seed=seed, validate=2000)
        for table in examples.tables.values():
            score = table["dense"][:, 0] - table["dense"][:, 2]
            chance = 1 / (1 + np.exp(-2 * score))
            generator = np.random.default_rng(seed)
            table["y"] = (generator.random(len(score)) < chance).astype(np.int64)
            taught = loss.taught(Rows(score=score))
            table["teacher/y"] = next(taught.batches("train"))["teacher/y"]
        examples.targets = Schema((Field("y", "int64"), Field("teacher/y", "float32")))
        run = Run(directory=tmp_path / f"{type(strategy.loss).__name__}-{seed}")
        model = build(LogisticRegression(), examples.features, seed=1)
        model = strategy.fit(model, examples, run)
        table = examples.tables["validate"]
        with torch.no_grad():
            inputs = [torch.from_numpy(table[n]) for n in examples.features.tensors.names]
            found = strategy.predictions(model(*inputs))["y"].numpy()
        return float(np.abs(found - table["teacher/y"]).mean())

    for seed in (0, 1):
        assert learnt(replace(strategy, loss=loss), seed) < 0.5 * learnt(strategy, seed)
