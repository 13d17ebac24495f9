"""A strategy for models that are no torch modules: fitted in memory, carried over as ONNX."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drivetrain.core.errors import wrong
from drivetrain.core.metric import Metric, Progress
from drivetrain.core.need import need
from drivetrain.core.schema import FeatureSchema
from drivetrain.core.seams import Examples, Run, Split

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from drivetrain.core.graph import Graph

    Arrays = tuple["np.ndarray[Any, Any]", Mapping[str, "np.ndarray[Any, Any]"]]

Convert = Callable[[Any, int], "onnx.ModelProto"]


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """Fits anything with ``fit(x, y)`` and ``predict_proba(x)``: scikit-learn, LightGBM, XGBoost.

    The features stand in front as for a torch model: the estimator sees float32
    ``[rows, dense + index]``, the block ``dense`` followed by the block ``index``, all rows in
    memory, and the served graph is the feature graph joined with the converted estimator.

    Attributes:
        convert: ``(fitted estimator, width) -> onnx.ModelProto`` with one input ``[rows, width]``
            and a float output of class probabilities ``[rows, classes]`` (or of values
            ``[rows, 1]``), such as :func:`lightgbm` or :func:`sklearn`.
        target: which target it learns; None takes the only one.
        fit_arguments: further arguments of the estimator's ``fit``, made from the validation
            arrays ``(x, y)``; for early stopping.
    """

    convert: Convert
    target: str | None = None
    fit_arguments: Callable[[Any, Any], Mapping[str, Any]] | None = None

    def build(self, factory: Callable[[], Any], features: FeatureSchema, seed: int = 0) -> Any:
        """What the factory makes; a seed is its own business."""
        return factory()

    def fit(self, model: Any, source: Examples, run: Run) -> "Graph":
        """Fit the estimator that the factory made, and convert it."""
        name = self._target(source)
        x, targets = _arrays(source, "train", run)
        arguments: Mapping[str, Any] = {}
        if self.fit_arguments is not None:
            validate, held = _arrays(source, "validate", run)
            arguments = self.fit_arguments(validate, held[name])
        model.fit(x, targets[name], **arguments)
        _check_classes(model, name)
        run.emit(Metric(name="train/rows", value=float(len(x))))
        return _behind_blocks(self.convert(model, x.shape[1]), source, name)

    def _target(self, source: Examples) -> str:
        names = source.targets.names
        if self.target is None and len(names) != 1:
            raise wrong("Estimator.target", names, "one target, or a name of one of them")
        return self.target or names[0]


def _arrays(source: Examples, split: Split, run: Run) -> "Arrays":
    import numpy as np

    blocks: list[Any] = []
    targets: dict[str, list[Any]] = {name: [] for name in source.targets.names}
    done, total = 0, source.rows(split)
    for batch in source.batches(split, size=65_536):
        block = [batch[name].astype(np.float32) for name in _blocks(source)]
        blocks.append(np.concatenate(block, axis=1))
        for name, found in targets.items():
            found.append(batch[name])
        done += len(batch)
        run.emit(Progress(stage=f"train: reading {split}", done=done, total=total))
    if not done:
        raise ValueError(f"split {split!r}: found 0 rows, allowed: at least 1.")
    return np.concatenate(blocks), {n: np.concatenate(found) for n, found in targets.items()}


def _blocks(source: Examples) -> Iterator[str]:
    for field in source.features.tensors:
        if field.name not in ("dense", "index"):
            raise wrong("an estimator's features", field.name, "features of kind dense or index")
        yield field.name


def _behind_blocks(model: "onnx.ModelProto", source: Examples, target: str) -> "Graph":
    """The converted model behind a concatenation of the blocks, with one named prediction."""
    from drivetrain.core.graph import Graph

    onnx = need("onnx", "train")
    helper, numbers = onnx.helper, onnx.TensorProto
    # converters call tensors what a target may be called too, such as label
    model = onnx.compose.add_prefix(model, "estimator/")
    graph = model.graph
    initial = {tensor.name for tensor in graph.initializer}
    taken = [value for value in graph.input if value.name not in initial]
    if len(taken) != 1:
        raise wrong("the converted model's inputs", [v.name for v in taken], "exactly one")
    floats = [v for v in graph.output if v.type.tensor_type.elem_type == numbers.FLOAT]
    if len(floats) != 1:
        names = [value.name for value in graph.output]
        raise wrong("the converted model's outputs", names, "one float tensor (zipmap off)")
    dimensions = floats[0].type.tensor_type.shape.dim
    width = dimensions[-1].dim_value if dimensions else 0
    if not width:  # of two columns the second counts, of one the first: a guess may be its contrary
        found = [d.dim_param or d.dim_value or None for d in dimensions]
        raise wrong("the converted model's output", found, "[rows, classes] with a known number")
    blocks = list(source.features.tensors)
    before = [
        helper.make_node("Cast", [field.name], [f"{field.name}/float"], to=numbers.FLOAT)
        for field in blocks
    ]
    parts = [f"{field.name}/float" for field in blocks]
    before.append(helper.make_node("Concat", parts, [taken[0].name], axis=1))
    # The probability of the second class of two; all probabilities of more; the only value.
    column = helper.make_tensor("prediction/column", numbers.INT64, [], [1 if width == 2 else 0])
    after = (
        helper.make_node("Identity", [floats[0].name], [target])
        if width > 2
        else helper.make_node("Gather", [floats[0].name, "prediction/column"], [target], axis=1)
    )
    inputs = [helper.make_tensor_value_info(f.name, f.onnx, ["rows", *f.shape]) for f in blocks]
    shape = ["rows", width] if width > 2 else ["rows"]
    output = helper.make_tensor_value_info(target, numbers.FLOAT, shape)
    whole = helper.make_graph(
        [*before, *graph.node, after], "estimator", inputs, [output], [*graph.initializer, column]
    )
    opsets = {entry.domain or "": entry.version for entry in model.opset_import}
    imports = [helper.make_opsetid(d, v) for d, v in {"": 17, **opsets}.items()]
    made = helper.make_model(whole, opset_imports=imports)
    made.functions.extend(model.functions)
    return Graph.from_proto(made)


def sklearn(model: Any, width: int) -> "onnx.ModelProto":
    """Convert a fitted scikit-learn estimator or pipeline of float32 ``[rows, width]``."""
    skl2onnx = need("skl2onnx", "sklearn")
    types = need("skl2onnx.common.data_types", "sklearn")
    inputs = [("x", types.FloatTensorType([None, width]))]
    options = {id(model): {"zipmap": False}} if hasattr(model, "predict_proba") else None
    return skl2onnx.convert_sklearn(
        model, initial_types=inputs, options=options, target_opset={"": 18, "ai.onnx.ml": 3}
    )


def lightgbm(model: Any, width: int) -> "onnx.ModelProto":
    """Convert a fitted LightGBM classifier or regressor of float32 ``[rows, width]``."""
    onnxmltools = need("onnxmltools", "sklearn")
    types = need("onnxmltools.convert.common.data_types", "sklearn")
    booster = _with_float32_thresholds(getattr(model, "booster_", model))
    inputs = [("x", types.FloatTensorType([None, width]))]
    return onnxmltools.convert_lightgbm(
        booster, initial_types=inputs, zipmap=False, target_opset=15
    )


def _with_float32_thresholds(booster: Any) -> Any:
    """The same trees with thresholds that float32 can hold.

    LightGBM splits by ``x <= t`` with ``t`` a float64 between two values of the feature, and ONNX
    has float32 thresholds. Rounded to the nearest, ``t`` may become the upper one of two
    neighbouring values, and rows go the wrong way; rounded down, ``x <= t`` stays what it was for
    every float32 ``x``.
    """
    kept: list[str] = []
    for line in booster.model_to_string().split("\n"):
        key, _, values = line.partition("=")
        if key == "threshold":
            kept.append(f"threshold={' '.join(map(_rounded_down, values.split()))}")
        elif key != "tree_sizes":  # bytes of each tree's text, which have changed; it is optional
            kept.append(line)
    return need("lightgbm", "sklearn").Booster(model_str="\n".join(kept))


def _rounded_down(number: str) -> str:
    import numpy as np

    exact = float(number)
    nearest = np.float32(exact)
    below = np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > exact else nearest
    return repr(float(below))


def _check_classes(model: Any, target: str) -> None:
    """A column of probabilities counts as the class of its number, so those must be the classes."""
    import numpy as np

    classes = np.asarray(getattr(model, "classes_", (0, 1)))
    counted = len(classes) > 1 and np.array_equal(classes, np.arange(len(classes)))
    if classes.dtype.kind in "biuf" and not counted:
        allowed = "0, 1 and so on, each of them in some row"
        raise wrong(f"classes of target {target!r} in training", classes.tolist(), allowed)
