"""Embedding tables that are declared and never made here: their rows live on servers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.overrides import TorchFunctionMode

from drivetrain.core.errors import wrong
from drivetrain.train.rows.held_rows import TableShape
from drivetrain.train.rows.spread import Rows, Start

if TYPE_CHECKING:
    from drivetrain.train.rows.remote_tables import RemoteTables


class RemoteEmbedding(nn.Module):
    """In the place of an ``nn.Embedding`` whose rows live on servers while it is trained.

    Args:
        shape: of the table.
        values: all rows ``[rows, dim]`` where they exist already; None lets each come to exist when
            it is first seen.

    Attributes:
        tables: what asks the servers; set when they were met.
        number: of this table among those.
    """

    def __init__(self, shape: TableShape, values: Rows | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.values = values
        self.tables: RemoteTables | None = None
        self.number = 0

    @torch.compiler.disable
    def forward(self, ids: Tensor) -> Tensor:
        """Rows ``[..., dim]`` of ids of any shape.

        Raises:
            ConnectionError: a server of rows or another worker is missing; names it.
            IndexError: the table has no such id.
        """
        assert self.tables is not None, "the servers of rows were not met"
        learns = self.training and torch.is_grad_enabled()
        look = self.tables.look_up if learns else self.tables.peek
        rows, inverse = look(self.number, ids)
        return embedding(inverse, rows)


class SeenEmbedding(nn.Module):
    """An embedding that holds the rows that training saw, and one row for all others.

    Args:
        rows: ids go from 0 to below it.
        table: ``[1 + seen, dim]``; the row 0 is that of ids that were never seen.
        places: int32 ``[rows]``, where each id is found in ``table``.
    """

    def __init__(self, table: Tensor, places: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(table, requires_grad=False)
        self.places: Tensor
        self.register_buffer("places", places)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows ``[..., dim]`` of ids of any shape."""
        return embedding(self.places[ids].long(), self.weight)


class Unmade(TorchFunctionMode):
    """Where this is active, matrices of so many rows get a shape and no memory.

    What they would have been filled with is noted instead.

    Args:
        at_least: rows.
    """

    def __init__(self, at_least: int) -> None:
        super().__init__()
        self._at_least = at_least
        self._starts: dict[int, Start | str] = {}

    def start(self, table: Tensor, where: str) -> Start:
        """What a table's rows begin with.

        Raises:
            ValueError: it was filled by something that can't be drawn row by row.
        """
        found = self._starts.get(id(table), "nothing")
        if isinstance(found, str):
            raise wrong(
                f"{where}: filled by", found, "normal_, uniform_, zeros_, ones_ or constant_"
            )
        return found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty and len(args) == 1 and isinstance(args[0], tuple):
            shape = args[0]
            if len(shape) == 2 and shape[0] >= self._at_least:
                options["device"] = "meta"
        result = func(*args, **options)
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.startswith("__"):
            table = args[0] if args else options.get("tensor")
            if isinstance(table, Tensor) and table.is_meta:
                self._starts[id(table)] = _start(name, args[1:], options)
        return result


def _start(name: str, arguments: Any, options: dict[str, Any]) -> Start | str:
    """What an initializer of torch fills with, or its name."""

    def given(position: int, names: tuple[str, ...], default: float) -> float:
        if len(arguments) > position:
            return float(arguments[position])
        return float(next((options[n] for n in names if n in options), default))

    if name == "normal_":
        return Start("normal", given(0, ("mean",), 0), given(1, ("std",), 1))
    if name == "uniform_":
        return Start("uniform", given(0, ("a", "from"), 0), given(1, ("b", "to"), 1))
    if name in ("zeros_", "zero_", "ones_"):
        return Start("constant", float(name == "ones_"))
    if name in ("constant_", "fill_"):
        return Start("constant", given(0, ("val", "value"), 0))
    return name


def replace_tables(model: nn.Module, at_least: int, unmade: Unmade | None = None) -> None:
    """Put a :class:`RemoteEmbedding` in the place of each large ``nn.Embedding``.

    Args:
        model: changed in place.
        at_least: rows of a large one.
        unmade: was active when the model was made; None where its tables have values.

    Raises:
        ValueError: a table is of a kind whose rows can't live on a server.
    """
    remote: dict[int, RemoteEmbedding] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if not _large(module, at_least):
            continue
        assert isinstance(module, nn.Embedding)
        if id(module) not in remote:
            weight, values = module.weight, None
            if unmade is None or not weight.is_meta:
                start, values = Start("constant"), weight.detach().cpu().float().numpy().copy()
            else:
                start = unmade.start(weight, f"table {path!r}")
            shape = TableShape(path, module.num_embeddings, module.embedding_dim, start)
            remote[id(module)] = RemoteEmbedding(shape, values)
        put_module(model, path, remote[id(module)])
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise wrong(
                f"table {name!r} of {parameter.shape[0]} rows",
                "one that can't live on servers",
                "the weight of an nn.Embedding without padding_idx, max_norm, sparse and "
                "scale_grad_by_freq, or a larger ParameterServer.at_least",
            )


def put_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Set the module at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _large(module: nn.Module, at_least: int) -> bool:
    return (
        type(module) is nn.Embedding
        and module.num_embeddings >= at_least
        and module.weight.requires_grad
        and module.padding_idx is None
        and module.max_norm is None
        and not (module.sparse or module.scale_grad_by_freq)
    )
