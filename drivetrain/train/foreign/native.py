"""This package's losses as another framework computes them."""

from collections.abc import Callable, Mapping
from typing import Any

from drivetrain.core.errors import wrong
from drivetrain.core.need import need
from drivetrain.train.loss import BinaryCrossEntropy, CrossEntropy, MeanSquaredError

Native = Callable[[Any, Mapping[str, Any]], Any]
"""The mean loss over a batch, from outputs and targets, all of them arrays of the framework."""

_OURS = (BinaryCrossEntropy, CrossEntropy, MeanSquaredError)


def in_keras(loss: Any) -> Native:
    """The loss in ``keras.ops``, on whatever back end; a callable of the user's as it is.

    Raises:
        ValueError: a loss of this package that is written for torch alone.
    """
    if not _is_ours(loss, "Keras"):
        return loss
    ops = need("keras.ops", "keras")

    def binary(outputs: Any, labels: Any) -> Any:
        labels = _for_members(ops.cast(labels, outputs.dtype), outputs, 1)
        labels = labels * (1 - loss.smoothing) + loss.smoothing / 2
        labels = ops.broadcast_to(labels, ops.shape(outputs))
        return ops.binary_crossentropy(labels, outputs, from_logits=True)

    def classes(outputs: Any, labels: Any) -> Any:
        number = outputs.shape[-1]
        hot = ops.one_hot(ops.cast(labels, "int32"), number, dtype=outputs.dtype)
        hot = _for_members(hot * (1 - loss.smoothing) + loss.smoothing / number, outputs, 2)
        hot = ops.broadcast_to(hot, ops.shape(outputs))
        return ops.categorical_crossentropy(hot, outputs, from_logits=True)

    def squared(outputs: Any, labels: Any) -> Any:
        return ops.square(outputs - _for_members(ops.cast(labels, outputs.dtype), outputs, 1))

    return _mean(loss, binary, classes, squared, ops.mean)


def in_jax(loss: Any) -> Native:
    """The loss in optax; a callable of the user's as it is.

    Raises:
        ValueError: a loss of this package that is written for torch alone.
    """
    if not _is_ours(loss, "Flax"):
        return loss
    optax, jax = need("optax", "jax"), need("jax", "jax")

    def binary(outputs: Any, labels: Any) -> Any:
        labels = _for_members(labels.astype(outputs.dtype), outputs, 1)
        labels = labels * (1 - loss.smoothing) + loss.smoothing / 2
        return optax.losses.sigmoid_binary_cross_entropy(outputs, labels)

    def classes(outputs: Any, labels: Any) -> Any:
        hot = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
        hot = _for_members(optax.losses.smooth_labels(hot, loss.smoothing), outputs, 2)
        return optax.losses.softmax_cross_entropy(outputs, hot)

    def squared(outputs: Any, labels: Any) -> Any:
        labels = _for_members(labels.astype(outputs.dtype), outputs, 1)
        return optax.losses.squared_error(outputs, jax.numpy.broadcast_to(labels, outputs.shape))

    return _mean(loss, binary, classes, squared, jax.numpy.mean)


def _is_ours(loss: Any, framework: str) -> bool:
    if isinstance(loss, _OURS):
        return True
    if type(loss).__module__.partition(".")[0] == __name__.partition(".")[0]:
        names = ", ".join(kind.__name__ for kind in _OURS)
        raise wrong(f"{framework}.loss", type(loss).__name__, f"{names}, or a callable")
    return False


def _mean(loss: Any, binary: Any, classes: Any, squared: Any, mean: Any) -> Native:
    kinds = {BinaryCrossEntropy: binary, CrossEntropy: classes, MeanSquaredError: squared}
    each = next(made for kind, made in kinds.items() if isinstance(loss, kind))
    return lambda outputs, targets: mean(each(outputs, targets[loss.target]))


def _for_members(labels: Any, outputs: Any, dimensions: int) -> Any:
    """Labels with a dimension for the members of an ensemble, where there are any."""
    return labels[:, None] if len(outputs.shape) > dimensions else labels
