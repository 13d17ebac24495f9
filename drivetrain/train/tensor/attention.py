"""Attention with a projection of its own for queries, keys and values, so that heads can be cut."""

from collections.abc import Iterator, Mapping
from typing import TypeGuard

import torch
from torch import Tensor, nn

_PARTS = ("q_proj", "k_proj", "v_proj")


class Heads(nn.Module):
    """What ``nn.MultiheadAttention`` computes, its packed projection unpacked.

    It computes with as many heads as its projections give: all, or a part of them where a process
    holds no more.

    Source: Vaswani et al., Attention Is All You Need, 2017.

    Args:
        whole: gives its weights; of one width for queries, keys and values.
    """

    # What nn.TransformerEncoderLayer asks before it takes a path that reads packed weights.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        self.batch_first = whole.batch_first
        self.num_heads = whole.num_heads
        self.embed_dim = whole.embed_dim
        self.head_dim = whole.head_dim
        self.dropout = whole.dropout
        weights, biases = whole.in_proj_weight, whole.in_proj_bias
        assert weights is not None
        for number, name in enumerate(_PARTS):
            self.add_module(name, _linear(weights, biases, number, 3))
        self.out_proj = _linear(whole.out_proj.weight, whole.out_proj.bias, 0, 1)
        self.train(whole.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``, masks and shapes included."""
        batched = query.dim() == 3
        inputs = [query, key, value]
        if not batched:
            inputs = [tensor.unsqueeze(0) for tensor in inputs]
        elif not self.batch_first:
            inputs = [tensor.transpose(0, 1) for tensor in inputs]
        q, k, v = (
            self.get_submodule(name)(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for name, x in zip(_PARTS, inputs, strict=True)
        )
        mask = _mask(q, k, key_padding_mask, attn_mask)
        rate = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            shares = (scores if mask is None else scores + mask).softmax(-1)
            shares = nn.functional.dropout(shares, rate)
            found = shares @ v
            weights = shares.mean(1) if average_attn_weights else shares
            weights = weights if batched else weights.squeeze(0)
        else:
            found = nn.functional.scaled_dot_product_attention(q, k, v, mask, rate)
        output = self.out_proj(found.transpose(1, 2).flatten(-2))
        if not batched:
            return output.squeeze(0), weights
        return output if self.batch_first else output.transpose(0, 1), weights


def _linear(weight: Tensor, bias: Tensor | None, part: int, parts: int) -> nn.Linear:
    """One of so many layers that are packed along their outputs."""

    def own(packed: Tensor) -> nn.Parameter:
        piece = packed.detach().chunk(parts)[part].clone()
        return nn.Parameter(piece, requires_grad=packed.requires_grad)

    outputs, inputs = weight.shape[0] // parts, weight.shape[1]
    made = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    made.weight = own(weight)
    if bias is not None:
        made.bias = own(bias)
    return made


def _mask(q: Tensor, k: Tensor, padding: Tensor | None, masked: Tensor | None) -> Tensor | None:
    """What is added to scores ``[rows, heads, queries, keys]``; None for nothing."""
    total: Tensor | None = None
    if padding is not None:
        padding = padding if padding.dim() == 2 else padding.unsqueeze(0)
        total = _added(padding, q.dtype)[:, None, None, :]
    if masked is not None:
        masked = _added(masked, q.dtype)
        if masked.dim() == 3:  # one for each row and head
            masked = masked.view(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        total = masked if total is None else total + masked
    return total


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


def opened(model: nn.Module) -> nn.Module:
    """The model with its ``nn.MultiheadAttention`` unpacked, in place, where it can be."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for parent in list(model.modules()):
        if isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False  # which only packed weights understand
        for name, child in list(parent.named_children()):
            if _opens(child) and all(owners[id(p)] == 1 for p in child.parameters()):
                setattr(parent, name, Heads(child))
    return Heads(model) if _opens(model) else model


def _opens(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    return (
        type(module) is nn.MultiheadAttention
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
    )


def closed(names: Mapping[str, Tensor], model: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """For each name of a model as it was, what :func:`opened` calls its parts, in order.

    Args:
        names: of the model as it was.
        model: what it was turned into.
    """
    inside = {n for n, m in model.named_modules() if isinstance(m, Heads)}
    for name in names:
        path, _, last = name.rpartition(".")
        kind = last.removeprefix("in_proj_")
        if path in inside and kind != last:
            yield name, [f"{path}{'.' if path else ''}{part}.{kind}" for part in _PARTS]
        else:
            yield name, [name]
