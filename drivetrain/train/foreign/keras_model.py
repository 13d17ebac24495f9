"""A Keras model bound to features, and what its training is on any back end."""

import random
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.need import need
from drivetrain.core.schema import FeatureSchema
from drivetrain.models.bind import Plan, argument, arguments, check_all_enter, plan
from drivetrain.train.foreign.native import Native
from drivetrain.train.foreign.outputs import leaves, plain, rebuilt
from drivetrain.train.keras import SUFFIX, inputs, of_width


class BoundKeras:
    """A functional model from the tensors of ``features.tensors``, in order, to a list of outputs.

    Args:
        model: the user's.
        features: the fitted features.
        mirrored: the strategy of TensorFlow that it was made under.

    Attributes:
        model: shares the weights of the user's.
        like: the outputs of the user's model, for their structure.
    """

    def __init__(self, model: Any, features: FeatureSchema, mirrored: Any = None) -> None:
        keras = need("keras", "keras")
        self.features = features
        self.mirrored = mirrored
        self.types = [of_width(field.numpy) for field in features.tensors]
        tensors = list(inputs(features).values())
        self.like = plain(_called(model, features, tensors))
        self.model = keras.Model(tensors, list(leaves(self.like).values()))

    def given(self, arrays: Sequence[Array]) -> list[Array]:
        """The arrays in the types that the back end takes."""
        return [a.astype(kind, copy=False) for a, kind in zip(arrays, self.types, strict=True)]

    def listed(self, outputs: Any) -> list[Any]:
        """What the model answers, as a list: Keras gives the only one of a list by itself."""
        return list(outputs) if isinstance(outputs, tuple | list) else [outputs]

    def structured(self, outputs: Any) -> Any:
        """What the model answers, in the structure of the user's model."""
        return rebuilt(self.like, self.listed(outputs))


class KerasModel:
    """What all back ends have in common of :class:`drivetrain.train.foreign.model.Foreign`.

    Args:
        bound: the model.
        optimizer: of Keras, not built yet.
        loss: the mean over a batch.
    """

    def __init__(self, bound: BoundKeras, optimizer: Any, loss: Native) -> None:
        self.bound = bound
        self.model = bound.model
        self.loss = loss
        self.keras_optimizer = optimizer
        optimizer.build(self.model.trainable_variables)
        self.rate: float | None = None

    def set_rate(self, rate: float) -> None:
        """Set the learning rate, if it is another one than before."""
        if rate != self.rate:
            self.keras_optimizer.learning_rate = self.rate = rate

    def measure(self, outputs: Any, targets: Mapping[str, Array]) -> float:
        """The loss of outputs."""
        ops = need("keras.ops", "keras")
        arrays = [ops.convert_to_tensor(array) for array in leaves(outputs).values()]
        given = {name: ops.convert_to_tensor(array) for name, array in targets.items()}
        return float(ops.convert_to_numpy(self.loss(rebuilt(outputs, arrays), given)))

    def weights(self) -> dict[str, Array]:
        """Weights, statistics and the seeds of dropout, by number and path."""
        return _arrays(self.model.variables)

    def optimizer(self) -> dict[str, Array]:
        """The optimizer's variables, by number and path."""
        return _arrays(self.keras_optimizer.variables)

    def load(
        self, weights: Mapping[str, Array], optimizer: Mapping[str, Array] | None = None
    ) -> None:
        """Go back to earlier weights."""
        _load(self.model.variables, weights)
        if optimizer is not None:
            _load(self.keras_optimizer.variables, optimizer)
            self.rate = None


def _called(model: Any, features: FeatureSchema, tensors: Sequence[Any]) -> Any:
    """The outputs of the user's model on symbols for the tensors."""
    name = type(model).__name__
    keras = need("keras", "keras")
    functional = isinstance(model, keras.Sequential) or hasattr(model, "_inputs_struct")
    if not functional:
        return model(**arguments(plan(model.call, features, f"{name}.call"), tensors))
    if isinstance(model, keras.Sequential) and not model.built:  # no keras.Input leads it
        return model(_only(features, tensors, name))
    struct = getattr(model, "_inputs_struct", model.inputs)
    if isinstance(struct, Mapping):
        named = arguments(_plan(list(struct), features, name), tensors)
        return model(named)
    known = {*features.tensors.names, *(f.name for f in features.features)}
    found = [_feature(tensor.name, known) for tensor in model.inputs]
    if len(found) == 1 and found[0] not in known:
        return model(_only(features, tensors, name))
    named = arguments(_plan(found, features, name), tensors)
    given = [named[each] for each in found]
    return model(given if isinstance(struct, tuple | list) else given[0])


def _feature(name: str, known: Container[str]) -> str:
    """The feature or tensor that an input of this name takes."""
    short = name.removesuffix(SUFFIX)
    return short if name not in known and short in known else name


def _only(features: FeatureSchema, tensors: Sequence[Any], name: str) -> Any:
    if len(tensors) != 1:
        allowed = f"inputs named after features; the tensors are {list(features.tensors.names)}"
        raise wrong(f"the inputs of {name}", "one of another name", allowed)
    return tensors[0]


def _plan(names: Sequence[str], features: FeatureSchema, where: str) -> Plan:
    allowed = list(dict.fromkeys([*features.tensors.names, *(f.name for f in features.features)]))
    for name in names:
        if name not in allowed:
            raise unknown("feature", name, allowed, f"an input of {where}")
    made = [argument(name, features) for name in names]
    check_all_enter(made, features, f"the inputs of {where}")
    return made


def _arrays(variables: Sequence[Any]) -> dict[str, Array]:
    convert = need("keras.ops", "keras").convert_to_numpy
    return {_name(n, variable): convert(variable.value) for n, variable in enumerate(variables)}


def _name(number: int, variable: Any) -> str:
    """A name that is unique, and the same in the next process.

    Keras numbers layers without a name by how many of the kind this process has made so far.
    """
    return f"{number}/{re.sub(r'_[0-9]+', '', variable.path)}"


def _load(variables: Sequence[Any], arrays: Mapping[str, Array]) -> None:
    for number, variable in enumerate(variables):
        variable.assign(arrays[_name(number, variable)])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Keras' generators from one seed; those of Python and numpy are put back after."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        need("keras", "keras").utils.set_random_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
