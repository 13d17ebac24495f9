"""A strategy for models of Keras 3, on the back end that the declaration names, served as ONNX."""

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.need import need
from drivetrain.core.schema import FeatureSchema
from drivetrain.train.foreign.elsewhere import Elsewhere

if TYPE_CHECKING:
    from drivetrain.train.foreign.keras_model import BoundKeras, KerasModel

BACKENDS = ("tensorflow", "jax", "torch")
DISTRIBUTIONS = ("mirrored",)
_OPTIMIZERS = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD", "adagrad": "Adagrad"}
SUFFIX = "_input"
"""Behind the name of a tensor in the name of its input."""
_EXTRA = {"tensorflow": "tensorflow", "jax": "jax", "torch": "train"}


@dataclass(frozen=True, kw_only=True)
class Keras(Elsewhere):
    """Trains a Keras model in this process by a compiled step of its back end.

    The model of the system is a factory ``features -> keras.Model``. A functional model says by
    the names of its inputs, or the keys of a dictionary of them, which features or blocks it
    takes: :func:`inputs` makes them. A model of one input may call it as it likes where there is
    one tensor; one with a ``call`` of its own names them there, as a torch module does in
    ``forward``. On one machine the same declaration and data give the same bits.

    Attributes:
        backend: ``tensorflow``, ``jax`` or ``torch``. Keras has one for a whole process: it must
            not have been imported with another.
        distribute: ``mirrored`` trains under ``tf.distribute.MirroredStrategy``: each device has
            the model and takes its share of every batch, and gradients are summed.
        devices: which ones, such as ``("GPU:0", "GPU:1")``; None takes all. Where the machine has
            fewer CPU devices than are named, the CPU is divided into so many logical ones.
        optimizer: ``adamw``, ``adam``, ``sgd`` or ``adagrad`` of Keras; or a callable of the
            parameter ``learning_rate`` that makes a ``keras.optimizers.Optimizer``.
    """

    backend: Literal["tensorflow", "jax", "torch"] = "tensorflow"
    distribute: Literal["mirrored"] | None = None
    devices: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend not in BACKENDS:
            raise unknown("Keras.backend", self.backend, BACKENDS)
        if self.distribute is not None:
            if self.distribute not in DISTRIBUTIONS:
                raise unknown("Keras.distribute", self.distribute, DISTRIBUTIONS)
            if self.backend != "tensorflow":
                raise wrong("Keras.distribute", self.distribute, "None; TensorFlow mirrors models")
        if self.devices is not None and self.distribute is None:
            raise wrong("Keras.devices", self.devices, "None, or distribute='mirrored'")

    @property
    def framework(self) -> str:
        """Its name in errors."""
        return f"Keras on {self.backend}"

    def build(
        self, factory: Callable[..., Any], features: FeatureSchema, seed: int = 0
    ) -> "BoundKeras":
        """The model that the factory makes, bound to the features.

        Raises:
            ValueError: it is no Keras model, its inputs and the features do not fit, or Keras was
                imported with another back end.
        """
        keras = chosen(self.backend)
        from drivetrain.train.foreign.keras_model import BoundKeras, seeded

        mirrored = None
        if self.distribute is not None:
            from drivetrain.train.foreign.keras_tensorflow import mirrored_on

            mirrored = mirrored_on(self.devices)
        with (
            seeded(seed),
            mirrored.scope() if mirrored else nullcontext(),
            warnings.catch_warnings(),
        ):
            # The keys are what counts here, and inputs() says why they are other names.
            warnings.filterwarnings("ignore", "When providing `inputs` as a dict")
            model = factory(features)
            if not isinstance(model, keras.Model):
                raise wrong("model factory", model, "a callable that returns a keras.Model")
            return BoundKeras(model, features, mirrored)

    def foreign(self, model: "BoundKeras") -> "KerasModel":
        """The model with an optimizer, on its back end."""
        from drivetrain.train.foreign.native import in_keras

        make = (
            getattr(need("keras.optimizers", "keras"), _OPTIMIZERS[self.optimizer])
            if isinstance(self.optimizer, str)
            else self.optimizer
        )
        loss = in_keras(self.loss)
        if self.backend == "tensorflow":
            from drivetrain.train.foreign.keras_tensorflow import KerasOnTensorFlow

            with model.mirrored.scope() if model.mirrored else nullcontext():
                return KerasOnTensorFlow(model, make(learning_rate=self.lr), loss)
        if self.backend == "jax":
            from drivetrain.train.foreign.keras_jax import KerasOnJax

            return KerasOnJax(model, make(learning_rate=self.lr), loss)
        from drivetrain.train.foreign.keras_torch import KerasOnTorch

        return KerasOnTorch(model, make(learning_rate=self.lr), loss)


def inputs(features: FeatureSchema) -> dict[str, Any]:
    """A ``keras.Input`` for each of ``features.tensors``, by name: ``keras.Model(inputs, …)``.

    The inputs' own names are others: Keras calls layers that have none ``dense`` too, and no two
    things in a model may share a name.
    """
    keras = need("keras", "keras")
    types = {field.name: of_width(field.numpy) for field in features.tensors}
    return {
        field.name: keras.Input(field.shape, dtype=types[field.name], name=f"{field.name}{SUFFIX}")
        for field in features.tensors
    }


def of_width(kind: str) -> str:
    """The type of a tensor of integers: JAX has 32 bits for them."""
    jax = need("keras", "keras").backend.backend() == "jax"
    return "int32" if kind == "int64" and jax else kind


def chosen(backend: str) -> Any:
    """The package keras on this back end.

    Raises:
        ImportError: Keras or the back end is not installed.
        ValueError: Keras was imported with another one.
    """
    if "keras" not in sys.modules:
        need(backend, _EXTRA[backend])
        os.environ["KERAS_BACKEND"] = backend
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # notes on each start, of no consequence
    keras = need("keras", "keras")
    found = keras.backend.backend()
    if found != backend:
        raise ValueError(
            f"Keras.backend: found Keras imported with {found!r} in this process, allowed: "
            f"{backend!r} from the start; set KERAS_BACKEND={backend}."
        )
    return keras
