"""Functions of JAX as ONNX, with any number of rows."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from drivetrain.core.graph import OPSET
from drivetrain.core.need import need
from drivetrain.core.schema import FeatureSchema, Field
from drivetrain.train.export import ROWS
from drivetrain.train.foreign.graph import taken

if TYPE_CHECKING:
    import onnx

    from drivetrain.core.batch import Array

HINT = (
    "the number of rows is a symbol there: take x.shape[0], not len(x), and name the arguments of "
    "pooling (window_shape=, strides=)"
)
"""What is known to fail, for whoever runs into it."""


def of_width(field: Field) -> str:
    """The type in which JAX takes a tensor: unless its process is told so, it has no int64."""
    return "int32" if field.numpy == "int64" else field.numpy


def converted(
    function: Callable[..., tuple[Any, ...]], features: FeatureSchema, framework: str
) -> "onnx.ModelProto":
    """A function of one array for each of ``features.tensors``, to a tuple, by jax2onnx.

    Raises:
        ValueError: there is an operation that jax2onnx can't convert.
    """
    jax, jax2onnx = need("jax", "jax"), need("jax2onnx", "jax")
    import numpy as np

    inputs = [
        jax.ShapeDtypeStruct((ROWS, *field.shape), np.dtype(of_width(field)))
        for field in features.tensors
    ]
    names = [taken(number) for number in range(len(inputs))]
    try:
        with _quiet():
            return jax2onnx.to_onnx(function, inputs=inputs, opset=OPSET, input_names=names)
    except Exception as error:
        raise ValueError(
            f"the model of {framework} can't be converted to ONNX: {type(error).__name__}: "
            f"{error}; {HINT}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep notes about shapes of no consequence from the user."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "jax2onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def narrow(array: "Array") -> "Array":
    """A target in 32 bits, which is what JAX computes in."""
    kind = {"f": "float32", "i": "int32", "u": "uint32"}.get(array.dtype.kind)
    return array if kind is None or array.dtype.itemsize <= 4 else array.astype(kind)
