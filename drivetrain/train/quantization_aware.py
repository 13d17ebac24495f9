"""Training on with rounded weights and activations, so that int8 costs a model next to nothing."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from drivetrain.core.errors import wrong

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class QuantizationAware:
    """Trains a trained model on with its matrix products rounded to eight bits, and exports those.

    For models that lose too much when :class:`drivetrain.compress.quantize.Quantize` rounds them
    afterwards. Each linear and convolutional layer sees what it will see when it is served: weights
    in 255 steps around 0 and inputs in 256 steps of the range that they had in training. Gradients
    pass through the rounding as if it were not there, and are 0 outside of the range. (Jacob et al.
    2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 3; Bengio et al. 2013 for the straight-through estimator.)

    The graph then holds the integers and the very scales of the last update, in the form that
    ``Quantize`` writes (``QuantizeLinear``, ``DequantizeLinear``): what was validated is what is
    served, but for a last bit here and there.

    An option of the strategy and no ``Pass``: it takes training rows, in the same processes. The
    compress stage holds the result against the model as it was; as the first thing before a
    ``Best`` it is one of that pass's candidates.

    Attributes:
        epochs: of training on; the schedule begins anew.
        lr: the learning rate; None takes a tenth of the training's.
        per_channel: a scale for each output channel of the weights.
        keep: patterns of names of layers that stay float, such as ``"*head*"``.
    """

    epochs: int = 1
    lr: float | None = None
    per_channel: bool = True
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.epochs, int) or self.epochs < 1:
            raise wrong("QuantizationAware.epochs", self.epochs, "an integer of at least 1")
        if self.lr is not None and not self.lr > 0:
            raise wrong("QuantizationAware.lr", self.lr, "a number above 0, or None")
        if not isinstance(self.keep, tuple):
            raise wrong("QuantizationAware.keep", self.keep, "a tuple of patterns")

    def rounding(self, model: "nn.Module") -> "nn.Module":
        """A copy whose layers round; it learns their ranges while it is trained.

        Args:
            model: trained; it is left as it is.

        Raises:
            ValueError: it has no layer that can be rounded.
        """
        from torch import nn

        from drivetrain.train.rounded import Rounding

        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

        def round_layer(name: str, layer: nn.Module) -> nn.Module:
            kept = any(fnmatchcase(name, pattern) for pattern in self.keep)
            if kept or not isinstance(layer, kinds) or not _plain(layer):
                return layer
            return Rounding(layer, per_channel=self.per_channel)

        changed = replaced(copy.deepcopy(model), round_layer)
        if not any(isinstance(module, Rounding) for module in changed.modules()):
            raise wrong(
                "QuantizationAware: layers that can be rounded",
                "none",
                "a linear or convolutional one, not in keep",
            )
        return changed

    def rounded(self, model: "nn.Module") -> "nn.Module":
        """The trained copy with integers instead of weights, for evaluation and export alone."""
        from drivetrain.train.rounded import Rounded, Rounding

        return replaced(model, lambda _, m: Rounded(m) if isinstance(m, Rounding) else m).eval()


def _plain(layer: "nn.Module") -> bool:
    """Whether a layer computes with its own weights alone, in no way of its own."""
    from torch import nn

    known = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return type(layer) in known and getattr(layer, "padding_mode", "zeros") == "zeros"


def replaced(model: "nn.Module", change: "Callable[[str, nn.Module], nn.Module]") -> "nn.Module":
    """The model with some of its modules changed; one that stands in two places stays one."""
    made: dict[int, nn.Module] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if not path:
            continue
        before, _, name = path.rpartition(".")
        parent = model.get_submodule(before) if before else model
        if id(module) not in made:
            made[id(module)] = change(path, module)
        if made[id(module)] is not module and name in dict(parent.named_children()):
            setattr(parent, name, made[id(module)])
    return model
