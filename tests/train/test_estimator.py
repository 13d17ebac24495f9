"""Models that are no torch modules: carried over as ONNX, they answer what the estimator does."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivetrain.core.batch import Batch
from drivetrain.core.graph import Graph
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Run
from drivetrain.train.estimator import Estimator, lightgbm, sklearn

FEATURES = FeatureSchema(
    (
        FeatureField(name="a", kind="dense", width=2),
        FeatureField(name="b", kind="dense"),
        FeatureField(name="c", kind="index", cardinality=7),
    )
)


@dataclass
class Rows:
    """Made examples in memory, with numbers that lie so close that float32 hardly parts them."""

    classes: int = 2
    features: FeatureSchema = FEATURES
    targets: Schema = Schema((Field("y", "int64"),))

    def tables(self, split: str) -> dict[str, Any]:
        random = np.random.default_rng(["train", "validate"].index(split))
        dense = random.normal(size=(3000, 3)).astype(np.float32)
        # the third has values that are neighbours in float32, which a threshold must part
        near = np.float32(0.3) + np.arange(3000) % 4 * np.spacing(np.float32(0.3))
        dense[:, 2] = near
        index = random.integers(0, 7, (3000, 1))
        score = dense[:, 0] * (index[:, 0] - 3) + 4.0 * (np.arange(3000) % 4 >= 2)
        edges = np.quantile(score, np.arange(1, self.classes) / self.classes)
        return {"dense": dense, "index": index, "y": np.digitize(score, edges)}

    def rows(self, split: Any) -> int:
        return 3000

    def batches(self, split: Any, *args: Any, size: int, **kwargs: Any) -> Iterator[Batch]:
        table = self.tables(split)
        for start in range(0, 3000, size):
            yield Batch({name: column[start : start + size] for name, column in table.items()})


def lgbm(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        from lightgbm import LGBMClassifier

        fixed = {"n_estimators": 30, "n_jobs": 1, "verbose": -1, "random_state": 0}
        return LGBMClassifier(**(fixed | options))

    return make


def regressor() -> Any:
    from lightgbm import LGBMRegressor

    return LGBMRegressor(n_estimators=20, n_jobs=1, verbose=-1)


def logistic() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression())


def forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(20, max_depth=6, random_state=0, n_jobs=1)


def ridge() -> Any:
    from sklearn.linear_model import Ridge

    return Ridge()


def fitted(tmp_path: Path, make: Any, source: Any, strategy: Estimator) -> tuple[Any, Graph]:
    model = strategy.build(make, source.features)
    graph = strategy.fit(model, source, Run(directory=tmp_path))
    assert isinstance(graph, Graph)
    return model, graph


def own(model: Any, rows: dict[str, Any]) -> Any:
    """What the estimator itself says of rows, read as the strategy gave them to it."""
    x = np.concatenate([rows["dense"], rows["index"].astype(np.float32)], axis=1)
    if hasattr(model, "predict_proba"):
        found = model.predict_proba(x)
        return found[:, 1] if found.shape[1] == 2 else found
    return model.predict(x)


@pytest.mark.parametrize(
    ("make", "convert", "classes"),
    [
        (lgbm(), lightgbm, 2),
        (lgbm(num_leaves=100, min_child_samples=1), lightgbm, 2),
        (lgbm(), lightgbm, 3),
        (regressor, lightgbm, 2),
        (logistic, sklearn, 2),
        (logistic, sklearn, 3),
        (forest, sklearn, 2),
        (ridge, sklearn, 2),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
def test_the_graph_answers_what_the_estimator_does(
    make: Any, convert: Any, classes: int, tmp_path: Path
) -> None:
    source = Rows(classes)
    model, graph = fitted(tmp_path, make, source, Estimator(convert=convert))
    assert graph.inputs.names == ("dense", "index")
    rows = source.tables("validate")
    answer = graph.run(Batch({name: rows[name] for name in ("dense", "index")}))["y"]
    due = own(model, rows)
    assert answer.shape == due.shape
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, due, atol=1e-5)
    assert np.ptp(due) > 0.05, "it learned something that could differ"


@pytest.mark.parametrize("name", ["label", "probabilities", "x"])
@pytest.mark.parametrize(("make", "convert"), [(lgbm(), lightgbm), (logistic, sklearn)])
def test_a_target_may_be_called_as_converters_call_a_tensor(
    make: Any, convert: Any, name: str, tmp_path: Path
) -> None:
    class Renamed(Rows):
        def tables(self, split: str) -> dict[str, Any]:
            table = super().tables(split)
            return {**table, name: table["y"]}

    source = Renamed(targets=Schema((Field(name, "int64"),)))
    _, graph = fitted(tmp_path, make, source, Estimator(convert=convert))
    assert graph.outputs.names == (name,)


def test_an_empty_split_is_refused_by_its_name(tmp_path: Path) -> None:
    class Empty(Rows):
        def batches(self, split: Any, *args: Any, size: int, **kwargs: Any) -> Iterator[Batch]:
            return super().batches(split, size=size) if split == "train" else iter(())

    strategy = Estimator(convert=sklearn, fit_arguments=lambda x, y: {})
    with pytest.raises(ValueError, match="split 'validate': found 0 rows"):
        fitted(tmp_path, logistic, Empty(), strategy)


def test_probabilities_of_an_unknown_number_of_classes_are_refused(tmp_path: Path) -> None:
    def forgetful(model: Any, width: int) -> Any:
        converted = sklearn(model, width)
        for value in converted.graph.output:
            value.type.tensor_type.shape.dim[-1].Clear()
        return converted

    with pytest.raises(ValueError, match=r"output: .* a known number"):
        fitted(tmp_path, logistic, Rows(), Estimator(convert=forgetful))


def test_early_stopping_sees_the_validation_rows(tmp_path: Path) -> None:
    seen: list[Any] = []

    def arguments(x: Any, y: Any) -> dict[str, Any]:
        from lightgbm import early_stopping

        seen.append((x, y))
        return {"eval_X": x, "eval_y": y, "callbacks": [early_stopping(2, verbose=False)]}

    source = Rows()
    strategy = Estimator(convert=lightgbm, fit_arguments=arguments)
    make = lgbm(n_estimators=500, learning_rate=0.5)
    model, graph = fitted(tmp_path, make, source, strategy)
    rows = source.tables("validate")
    np.testing.assert_array_equal(seen[0][0][:, :3], rows["dense"])
    np.testing.assert_array_equal(seen[0][1], rows["y"])
    assert 0 < model.best_iteration_ < 500
    answer = graph.run(Batch({name: rows[name] for name in ("dense", "index")}))["y"]
    np.testing.assert_allclose(answer, own(model, rows), atol=1e-5)


def test_one_of_several_targets_must_be_named(tmp_path: Path) -> None:
    source = Rows(targets=Schema((Field("y", "int64"), Field("z", "int64"))))
    with pytest.raises(ValueError, match=r"Estimator\.target.*'y', 'z'"):
        fitted(tmp_path, ridge, source, Estimator(convert=sklearn))


def test_features_that_are_no_blocks_are_refused_by_name(tmp_path: Path) -> None:
    words = FeatureField(name="words", kind="bag", width=3, cardinality=5)
    source = Rows(features=FeatureSchema((*FEATURES.features, words)))
    with pytest.raises(ValueError, match="'words', allowed: features of kind dense or index"):
        fitted(tmp_path, ridge, source, Estimator(convert=sklearn))


# -- the examples ----------------------------------------------------------------------------------


def test_the_sklearn_example_serves_what_its_pipeline_says(tmp_path: Path) -> None:
    from drivetrain.core.site import Site
    from drivetrain.pipeline import run

    file = Path(__file__).parents[2] / "examples" / "tumours_sklearn.py"
    spec = importlib.util.spec_from_file_location("tumours_sklearn", file)
    assert spec
    assert spec.loader
    example = importlib.util.module_from_spec(spec)
    sys.modules["tumours_sklearn"] = example
    spec.loader.exec_module(example)
    site = Site(store=str(tmp_path / "store"), work=str(tmp_path / "work"), device="cpu")
    bundle = run(example.system, site)
    assert bundle is not None

    def columns(rows: Batch) -> Any:
        return np.stack([rows[name] for name in example.COLUMNS], axis=1).astype(np.float32)

    train, test = (next(example.Cases().batches(split)) for split in ("train", "test"))
    model = example.pipeline().fit(columns(train), train["malignant"])
    answer = bundle.predict(test.select(example.COLUMNS))["malignant"]
    np.testing.assert_allclose(answer, model.predict_proba(columns(test))[:, 1], atol=1e-5)


@pytest.mark.parametrize("classes", [(0, 0), (0, 2), (1, 2)])
def test_classes_that_do_not_count_from_zero_are_refused(tmp_path: Path, classes: Any) -> None:
    class Other(Rows):
        def tables(self, split: str) -> dict[str, Any]:
            return {**super().tables(split), "y": np.array(classes)[np.arange(3000) % 2]}

    with pytest.raises(ValueError, match="classes of target 'y' in training"):
        fitted(tmp_path, forest, Other(), Estimator(convert=sklearn))
