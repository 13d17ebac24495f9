"""A strategy for models of Flax: nnx modules, trained by JAX and optax, served as ONNX."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drivetrain.core.errors import wrong
from drivetrain.core.need import need
from drivetrain.core.schema import FeatureSchema
from drivetrain.train.foreign.elsewhere import Elsewhere

if TYPE_CHECKING:
    from drivetrain.train.foreign.flax_module import BoundFlax, FlaxModel


@dataclass(frozen=True, kw_only=True)
class Flax(Elsewhere):
    """Trains a ``flax.nnx`` module in this process by a compiled step.

    The model of the system is a factory ``(features, rngs) -> nnx.Module`` whose ``__call__``
    names features or blocks of them, as a torch module's ``forward`` does. Index tensors and bags
    come as int32. The same declaration, data and machine give the same bits.

    Attributes:
        optimizer: ``adamw``, ``adam``, ``sgd`` or ``adagrad`` of optax; or a callable of the
            parameter ``learning_rate`` that makes an ``optax.GradientTransformation``.
    """

    def build(
        self, factory: Callable[..., Any], features: FeatureSchema, seed: int = 0
    ) -> "BoundFlax":
        """The module that the factory makes, bound to the features.

        Raises:
            ValueError: it is no module, or its parameters and the features do not fit.
        """
        nnx = need("flax.nnx", "jax")
        from drivetrain.train.foreign.flax_module import BoundFlax

        module = factory(features, nnx.Rngs(seed))
        if not isinstance(module, nnx.Module):
            raise wrong("model factory", module, "a callable that returns a flax.nnx.Module")
        return BoundFlax(module, features)

    def foreign(self, model: "BoundFlax") -> "FlaxModel":
        """The module with an optimizer."""
        from drivetrain.train.foreign.flax_module import FlaxModel
        from drivetrain.train.foreign.native import in_jax

        optax = need("optax", "jax")
        make = getattr(optax, self.optimizer) if isinstance(self.optimizer, str) else self.optimizer
        return FlaxModel(
            model, optax.inject_hyperparams(make)(learning_rate=self.lr), in_jax(self.loss)
        )
