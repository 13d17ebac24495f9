"""An nnx module with its optimizer, as the loop sees it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.graph import Graph
from drivetrain.core.need import need
from drivetrain.core.schema import FeatureSchema
from drivetrain.models.bind import arguments, plan
from drivetrain.train.foreign.graph import between
from drivetrain.train.foreign.jax_graph import converted, narrow, of_width
from drivetrain.train.foreign.native import Native
from drivetrain.train.foreign.outputs import inner, leaves, mapped, plain


class BoundFlax:
    """A module that takes the tensors of ``features.tensors`` in order, whatever it names them.

    Args:
        module: the user's.
        features: the fitted features.
    """

    def __init__(self, module: Any, features: FeatureSchema) -> None:
        self.module = module
        self.features = features
        self.plan = plan(module.__call__, features, f"{type(module).__name__}.__call__")
        self.types = [of_width(field) for field in features.tensors]

    def given(self, inputs: Sequence[Array]) -> list[Array]:
        """The arrays in the types that JAX takes."""
        return [a.astype(kind, copy=False) for a, kind in zip(inputs, self.types, strict=True)]

    def answer(self, module: Any, inputs: Sequence[Any]) -> Any:
        """What ``module``, this one in some state, answers."""
        return plain(module(**arguments(self.plan, inputs)))


class FlaxModel:
    """Implements :class:`drivetrain.train.foreign.model.Foreign` by functions that JAX compiles.

    Args:
        bound: the module; it is taken apart and never changed.
        optimizer: of optax, with ``learning_rate`` among its hyperparameters.
        loss: the mean over a batch.
    """

    def __init__(self, bound: BoundFlax, optimizer: Any, loss: Native) -> None:
        jax, nnx = need("jax", "jax"), need("flax.nnx", "jax")
        self.bound = bound
        self.loss = loss
        bound.module.eval()
        self._evaluated = nnx.split(bound.module, nnx.Param, ...)[0]
        bound.module.train()
        training, self._parameters, self._rest = nnx.split(bound.module, nnx.Param, ...)
        self._optimizer = optimizer.init(self._parameters)

        def update(parameters: Any, rest: Any, state: Any, inputs: Any, targets: Any) -> Any:
            def loss_of(parameters: Any) -> Any:
                module = nnx.merge(training, parameters, rest, copy=True)  # it may be changed
                value = loss(bound.answer(module, inputs), targets)
                return value, nnx.split(module, nnx.Param, ...)[2]

            (value, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(parameters)
            changes, state = optimizer.update(gradients, state, parameters)
            parameters = jax.tree.map(lambda p, u: p + u.astype(p.dtype), parameters, changes)
            return value, parameters, rest, state

        def outputs(parameters: Any, rest: Any, inputs: Any) -> Any:
            return bound.answer(nnx.merge(self._evaluated, parameters, rest), inputs)

        self._update = jax.jit(update, donate_argnums=(0, 1, 2))
        self._outputs = jax.jit(outputs)

    def update(self, inputs: Sequence[Array], targets: Mapping[str, Array], rate: float) -> Any:
        """Update the weights by one batch."""
        self._optimizer.hyperparams["learning_rate"] = np.float32(rate)
        loss, self._parameters, self._rest, self._optimizer = self._update(
            self._parameters,
            self._rest,
            self._optimizer,
            self.bound.given(inputs),
            {name: narrow(array) for name, array in targets.items()},
        )
        return loss

    def outputs(self, inputs: Sequence[Array]) -> Any:
        """What the module answers without dropout."""
        found = self._outputs(self._parameters, self._rest, self.bound.given(inputs))
        return mapped(found, np.asarray)

    def measure(self, outputs: Any, targets: Mapping[str, Array]) -> float:
        """The loss of :meth:`outputs`."""
        jnp = need("jax.numpy", "jax")
        arrays = {name: jnp.asarray(narrow(array)) for name, array in targets.items()}
        return float(self.loss(mapped(outputs, jnp.asarray), arrays))

    def weights(self) -> dict[str, Array]:
        """Parameters, statistics and the state of dropout, by path."""
        return {**_arrays("param", self._parameters), **_arrays("rest", self._rest)}

    def optimizer(self) -> dict[str, Array]:
        """The state of optax, by path."""
        return _arrays("optax", self._optimizer)

    def load(
        self, weights: Mapping[str, Array], optimizer: Mapping[str, Array] | None = None
    ) -> None:
        """Go back to earlier weights."""
        self._parameters = _loaded("param", self._parameters, weights)
        self._rest = _loaded("rest", self._rest, weights)
        if optimizer is not None:
            self._optimizer = _loaded("optax", self._optimizer, optimizer)

    @property
    def module(self) -> Any:
        """A module with the weights as they are now, to be asked and not to be trained."""
        nnx = need("flax.nnx", "jax")
        return nnx.merge(self._evaluated, self._parameters, self._rest, copy=True)

    def graph(self, features: FeatureSchema) -> Graph:
        """By jax2onnx, the weights inside."""
        module = self.module
        like = self.outputs([np.zeros((1, *f.shape), f.numpy) for f in features.tensors])  # pyright: ignore[reportArgumentType]

        def answer(*inputs: Any) -> tuple[Any, ...]:
            return tuple(leaves(self.bound.answer(module, inputs)).values())

        return between(converted(answer, features, "Flax"), features.tensors, inner(like))


def _arrays(head: str, tree: Any) -> dict[str, Array]:
    """The leaves of a tree by their paths; a key of random numbers as the numbers that it holds."""
    jax = need("jax", "jax")
    found: dict[str, Array] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = f"{head}{jax.tree_util.keystr(path)}"
        found[name] = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    return found


def _loaded(head: str, tree: Any, arrays: Mapping[str, Array]) -> Any:
    """The tree with the leaves that :func:`_arrays` gave."""
    jax = need("jax", "jax")

    def leaf_of(path: Any, leaf: Any) -> Any:
        array = jax.numpy.asarray(arrays[f"{head}{jax.tree_util.keystr(path)}"])
        if _is_key(leaf):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        return array

    return jax.tree_util.tree_map_with_path(leaf_of, tree)


def _is_key(leaf: Any) -> bool:
    jax = need("jax", "jax")
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
