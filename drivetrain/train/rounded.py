"""Layers in eight bits: while they learn, and with the integers that a graph holds."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

LEAST, MOST = -128, 127
EXACT = 1e-4
TOLERANCE = 0.1
"""How far a graph may be from torch: sums that round to the two sides of one step part there."""
_SHRINKS = 0.01
"""The share of a batch's range in the running one, where the batch's is smaller."""
_TINY = torch.finfo(torch.float32).tiny

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class Range(nn.Module):
    """Rounds a tensor to 256 steps of the range that it had while it was trained; 0 stays 0.

    A batch that goes beyond widens the range at once, for what is cut off is lost to the layer;
    others make it smaller by little and little, so that one stray row is forgotten. Both ends are
    buffers, which a checkpoint keeps and processes share.
    """

    def __init__(self) -> None:
        super().__init__()
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The steps' values; outside of the range the nearest, and no gradient."""
        if self.training and x.numel():
            self._follow(x.detach())
        scale, zero = self.steps()
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, LEAST, MOST)

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        low, high = torch.aminmax(x.float())
        low, high = low.clamp(max=0), high.clamp(min=0)  # 0 is what padding and ReLU give
        self.low.lerp_(low, _SHRINKS).copy_(torch.minimum(self.low, low))
        self.high.lerp_(high, _SHRINKS).copy_(torch.maximum(self.high, high))

    def steps(self) -> tuple[Tensor, Tensor]:
        """How wide a step is, and which one is 0 (int32)."""
        scale = ((self.high - self.low) / (MOST - LEAST)).clamp(min=_TINY)
        zero = (LEAST - self.low / scale).round().clamp(LEAST, MOST)
        return scale, zero.to(torch.int32)


class Rounding(nn.Module):
    """A layer whose weights and inputs are rounded while it learns.

    What a convolution gives is rounded too: runtimes have a kernel for integers in and out, where
    a linear layer's sums may stay float.

    Args:
        layer: whose parameters learn on.
        per_channel: a scale for each output channel of the weights.
    """

    def __init__(self, layer: Layer, *, per_channel: bool) -> None:
        super().__init__()
        self.layer = layer
        self.per_channel = per_channel
        self.inputs = Range()
        self.outputs = None if isinstance(layer, nn.Linear) else Range()
        self.to(layer.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer, in eight bits."""
        weight = self.layer.weight
        scales = self.scales()
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -MOST, MOST)
        y = apply(self.layer, self.inputs(x), rounded, self.layer.bias)
        return y if self.outputs is None else self.outputs(y)

    def scales(self) -> Tensor:
        """The step of each output channel's weights: the same for all, or its own."""
        most = self.layer.weight.detach().abs().flatten(1).amax(1)
        if not self.per_channel:
            most = most.max().expand_as(most)
        return (most / MOST).clamp(min=_TINY)


class Rounded(nn.Module):
    """A layer with integers for weights, which computes with their values, and is exported so.

    Args:
        layer: trained.
    """

    def __init__(self, layer: Rounding) -> None:
        super().__init__()
        self.layer = layer.layer  # for its stride, padding and groups; its weights go
        scale, zero = layer.inputs.steps()
        scales = layer.scales()
        if self.layer.bias is not None:
            # Where inputs or weights were 0 all along, the sums' steps are too small for a bias.
            scales = torch.maximum(scales, self.layer.bias.detach().abs() / (scale * 2.0**30))
        shape = (-1, *[1] * (self.layer.weight.dim() - 1))
        codes = (self.layer.weight.detach() / scales.view(shape)).round().clamp(-MOST, MOST)
        held: dict[str, Tensor | None] = {
            "codes": codes.to(torch.int8),
            "scales": scales,
            "scale": scale,
            "zero": zero.to(torch.int8),
            "bias_codes": None,
        }
        if self.layer.bias is not None:
            # In the steps of the sums that it is added to, so that it is added as an integer.
            bias = (self.layer.bias.detach() / (scales * scale)).round()
            held["bias_codes"] = bias.clamp(-(2**31), 2**31 - 128).to(torch.int32)
        if layer.outputs is not None:
            held["out_scale"], out_zero = layer.outputs.steps()
            held["out_zero"] = out_zero.to(torch.int8)
        for name, tensor in held.items():
            self.register_buffer(name, None if tensor is None else tensor.clone())
        self.rounds_outputs = layer.outputs is not None
        for name in ("weight", "bias"):
            self.layer.register_parameter(name, None)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer that was trained."""
        held: Any = self
        weight = _values(held.codes, held.scales)
        bias = None
        if held.bias_codes is not None:
            bias = _values(held.bias_codes, held.scales * held.scale)
        y = apply(self.layer, _through(x, held.scale, held.zero), weight, bias)
        return _through(y, held.out_scale, held.out_zero) if self.rounds_outputs else y


def apply(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a layer computes, with other weights."""
    if isinstance(layer, nn.Linear):
        return linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)


def _through(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """A tensor as the values of its steps."""
    if not torch.compiler.is_exporting():
        return torch.fake_quantize_per_tensor_affine(x, scale, zero.to(torch.int32), LEAST, MOST)
    codes = _operator("QuantizeLinear", (x, scale, zero), torch.int8, x)
    return _operator("DequantizeLinear", (codes, scale, zero), torch.float32, x)


def _values(codes: Tensor, scales: Tensor) -> Tensor:
    """Integers as numbers; each of the first dimension has a step of its own."""
    if not torch.compiler.is_exporting():
        return codes.to(torch.float32) * scales.view(-1, *[1] * (codes.dim() - 1))
    # ONNX Runtime has kernels for integers only where their zeros are written down.
    zeros = torch.zeros(len(codes), dtype=codes.dtype)
    return _operator("DequantizeLinear", (codes, scales, zeros), torch.float32, codes, axis=0)


def _operator(name: str, tensors: Any, kind: torch.dtype, like: Tensor, **more: Any) -> Tensor:
    """A node of the exported graph: the exporter knows none of these by torch's own names."""
    return torch.onnx.ops.symbolic(name, tensors, more, dtype=kind, shape=like.shape, version=20)


def tolerance(model: nn.Module) -> float:
    """How far the graph of a model may be from it, absolute up to 1 and relative above."""
    rounds = any(isinstance(module, Rounded) for module in model.modules())
    return TOLERANCE if rounds else EXACT
