"""Embedding tables of this process whose gradient is kept as the rows that were taken."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drivetrain.core.errors import wrong
from drivetrain.train.loop.step import Step
from drivetrain.train.native import rows as compiled
from drivetrain.train.rows.optimizers import (
    RowAdagrad,
    RowAdam,
    RowOptimizer,
    RowSGD,
)
from drivetrain.train.rows.remote_embedding import put_module
from drivetrain.train.rows.spread import Ids, Rows

_BEHIND = 2
"""So often as long as an update needs, memory that is kept between updates may be."""


class Lookup(torch.autograd.Function):
    """Rows of a table, whose gradient goes to where it is kept and not to the table."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, anchor: Tensor, ids: Tensor, table: "Touched"
    ) -> Tensor:
        """Rows ``[..., dim]``; ``anchor`` wants a gradient, so that backward comes here."""
        ctx.ids, ctx.table = ids, table
        return torch.embedding(table.weight, ids)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Keep what came."""
        ctx.table.taken.append((ctx.ids, gradient))
        return None, None, None


class Touched(nn.Module):
    """In the place of an ``nn.Embedding`` while it is trained row by row.

    Args:
        table: whose weight it shares.

    Attributes:
        taken: ids and gradients ``[..., dim]`` since the last update.
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.weight = table.weight
        self.taken: list[tuple[Tensor, Tensor]] = []
        self.anchor: Tensor
        self.register_buffer("anchor", torch.zeros(()), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows ``[..., dim]`` of ids of any shape."""
        if not (self.training and torch.is_grad_enabled()):
            return torch.embedding(self.weight, ids)
        anchor = self.anchor.requires_grad_()
        return Lookup.apply(anchor, ids, self)  # pyright: ignore[reportReturnType]


class TouchedRows:
    """The optimizer of a step, and beside it that of the rows which a batch took.

    It is a callback of the loop too, through which a checkpoint keeps what is remembered of rows.

    Args:
        step: whose optimizer it takes the place of; its model has :class:`Touched` tables.
        optimizer: of their rows.
        factor: of the learning rate, for rows.
    """

    def __init__(self, step: Step, optimizer: RowOptimizer, factor: float) -> None:
        self._step = step
        self._dense = step.optimizer
        self._factor = factor
        self.done = 0
        tables = {
            path: module
            for path, module in step.model.named_modules()
            if isinstance(module, Touched)
        }
        self._updates = {path: _Update(table, optimizer) for path, table in tables.items()}
        self.param_groups = self._dense.param_groups
        self.state_dict = self._dense.state_dict
        self.load_state_dict = self._dense.load_state_dict
        step.optimizer = self  # pyright: ignore[reportAttributeAccessIssue]

    def step(self) -> None:
        """Update all weights, and of the tables the rows that were taken since the last time."""
        self._dense.step()
        self.done += 1
        lr = self._factor * self.param_groups[0]["lr"]
        for update in self._updates.values():
            update(lr, self._step.scale, self.done)

    def after_update(self, loop: Any) -> None:
        """Nothing: rows were updated with the other weights."""

    def after_epoch(self, loop: Any) -> None:
        """Nothing."""

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Updates so far, and what is remembered of rows by table and name."""
        tensors = {
            f"{path}/{name}": torch.from_numpy(held)
            for path, update in self._updates.items()
            for name, held in update.state.items()
        }
        return {"done": self.done}, tensors

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`state` gave."""
        self.done = int(state["done"])
        for path, update in self._updates.items():
            for name, held in update.state.items():
                held[...] = tensors[f"{path}/{name}"].numpy()


class _Update:
    """One table's step, with the memory that it needs kept from one to the next."""

    def __init__(self, table: Touched, optimizer: RowOptimizer) -> None:
        self.table = table
        self.optimizer = optimizer
        self.values: Rows = table.weight.detach().numpy()
        rows, dim = self.values.shape
        widths = optimizer.widths(dim)
        self.state = {name: np.zeros((rows, width), np.float32) for name, width in widths.items()}
        self._places = np.full(rows, -1, np.int32) if compiled is not None else None
        self._room = np.empty(0, np.int64), np.empty((0, dim), np.float32)

    def __call__(self, lr: float, scale: float, done: int) -> None:
        taken = self.table.taken
        if not taken:
            return
        dim = self.values.shape[1]
        ids: Ids = _joined([ids.reshape(-1).long() for ids, _ in taken])
        gradients: Rows = _joined([g.reshape(-1, dim).float() for _, g in taken])
        taken.clear()
        if self._places is None:
            rows, summed = sum_by_row(ids, gradients)
            if scale != 1.0:
                summed *= np.float32(scale)
            self.optimizer.update(self.values, self.state, rows, summed, lr, done)
            return
        if not len(ids) <= len(self._room[0]) <= _BEHIND * len(ids):
            self._room = np.empty(len(ids), np.int64), np.empty((len(ids), dim), np.float32)
        kind, rate, one, two = _rule(self.optimizer, lr, done)
        state = [*self.state.values(), np.empty(0, np.float32), np.empty(0, np.float32)][:2]
        try:
            compiled.update(
                *(kind, dim, self.values, *state, ids, gradients, self._places, *self._room),
                *(rate, one, two, scale),
            )
        except IndexError:
            high = self.values.shape[0] - 1
            found = (int(ids.min()), int(ids.max()))
            raise IndexError(f"ids of a table: found {found}, allowed: 0 to {high}") from None


def _joined(parts: list[Tensor]) -> Any:
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.contiguous().numpy()


def _rule(optimizer: RowOptimizer, lr: float, done: int) -> tuple[int, float, float, float]:
    """The kernel's number of an optimizer, its rate, and what Adam's moments take in."""
    if isinstance(optimizer, RowAdagrad):
        return (2 if optimizer.by_row else 1), lr, 0.0, 0.0
    if isinstance(optimizer, RowAdam):
        one, two = optimizer.betas
        size = lr * (1 - two**done) ** 0.5 / (1 - one**done)
        return 3, size, 1 - one, 1 - two
    assert isinstance(optimizer, RowSGD), type(optimizer)
    return 0, lr, 0.0, 0.0


def sum_by_row(ids: Ids, gradients: Rows) -> tuple[Ids, Rows]:
    """Each row that was taken, once, and the sum of its gradients.

    Args:
        ids: ``[taken]``.
        gradients: ``[taken, dim]``.
    """
    order = np.argsort(ids, kind="stable")
    sorted_ids = ids[order]
    first = np.flatnonzero(np.r_[True, sorted_ids[1:] != sorted_ids[:-1]])
    return sorted_ids[first], np.add.reduceat(gradients[order], first, axis=0)


def touched(model: nn.Module, at_least: int) -> dict[str, Touched]:
    """The tables of a model that can be trained row by row: CPU, of so many rows, with a gradient.

    Args:
        model: is looked at only.
        at_least: rows.

    Raises:
        ValueError: there is none; or one is of a kind that cannot.
    """
    found: dict[str, Touched] = {}
    shared: dict[int, Touched] = {}
    large: list[str] = []
    for path, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.Embedding) or module.num_embeddings < at_least:
            continue
        large.append(path)
        plain = module.padding_idx is None and module.max_norm is None
        if not plain or module.sparse or module.scale_grad_by_freq:
            allowed = "none of padding_idx, max_norm, sparse and scale_grad_by_freq"
            raise wrong(f"table {path!r} with rows", module, allowed)
        if module.weight.device.type != "cpu":
            raise wrong(f"table {path!r} with rows", module.weight.device, "one on the CPU")
        if module.weight.requires_grad:
            found[path] = shared.setdefault(id(module.weight), Touched(module))
    if not found:
        allowed = f"an nn.Embedding of at least {at_least} rows, or a smaller RowWise.at_least"
        raise wrong("the model's tables with rows", large, allowed)
    held = {id(table.weight) for table in found.values()}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in held and not isinstance(module, nn.Embedding):
                allowed = "a weight of its own: the table's gradient comes by lookups alone"
                named = f"{path}.{name}".removeprefix(".")
                raise wrong(f"weight '{named}' with rows", "that of a table", allowed)
    return found


@contextmanager
def in_place(model: nn.Module, tables: Mapping[str, Touched]) -> Iterator[None]:
    """Put them where the model has its own, and its own back at the end."""
    before = {path: model.get_submodule(path) for path in tables}
    weights = {id(table.weight): table.weight for table in tables.values()}.values()
    for path, table in tables.items():
        put_module(model, path, table.train(model.training))
    for weight in weights:  # so that no optimizer, average or norm looks at all of it
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_()
        for path, module in before.items():
            put_module(model, path, module.train(model.training))
