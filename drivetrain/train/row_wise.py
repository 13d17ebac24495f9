"""An option of a strategy: large embedding tables are trained by the rows that a batch takes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from drivetrain.core.errors import unknown, wrong

if TYPE_CHECKING:
    from drivetrain.train.single import Single

ROW_OPTIMIZERS = ("rowwise_adagrad", "adagrad", "adam", "sgd")


@dataclass(frozen=True, kw_only=True)
class RowWise:
    """What an update costs follows the rows that a batch takes, not the rows of the tables.

    A dense optimizer reads and writes every row of every table, and what it remembers of each, for
    a batch that takes some thousands of them. Here a lookup keeps its gradient beside the ids that
    it took, those of one row are summed, and that row alone is updated. All other weights are
    trained as ever, and there must be some. A table's gradient comes by lookups alone: a
    ``forward`` that also multiplies by the weight of a table must not be trained so.

    Source: Mudigere et al., Software-Hardware Co-design for Fast and Scalable Training of Deep
    Learning Recommendation Models, ISCA 2022, section 4.1.

    Attributes:
        optimizer: ``rowwise_adagrad`` remembers one number of a row; ``adagrad`` as many as it is
            wide; ``adam`` both moments, which rest while a row has no gradient; ``sgd`` nothing.
        lr: the learning rate of rows, which follows the strategy's schedule; None takes its ``lr``.
        at_least: rows of a table that is trained so; smaller ones are like other weights.
    """

    optimizer: Literal["rowwise_adagrad", "adagrad", "adam", "sgd"] = "rowwise_adagrad"
    lr: float | None = None
    at_least: int = 1000

    def __post_init__(self) -> None:
        if self.optimizer not in ROW_OPTIMIZERS:
            raise unknown("RowWise.optimizer", self.optimizer, ROW_OPTIMIZERS)
        if self.lr is not None and not self.lr > 0:
            raise wrong("RowWise.lr", self.lr, "a number above 0, or None")
        if self.at_least < 1:
            raise wrong("RowWise.at_least", self.at_least, "an integer of at least 1")

    def check(self, strategy: "Single") -> None:
        """Refuse what would need all rows of a table at each update.

        Args:
            strategy: what it is an option of.

        Raises:
            ValueError: names the option and says why.
        """
        where = type(strategy).__name__
        if not vars(type(strategy)).get("can_take_rows"):
            allowed = "None; Single takes it, and ParameterServer trains rows over processes"
            raise wrong(f"{where}.rows", self, allowed)
        for name in ("average", "clip_norm", "privacy"):
            if getattr(strategy, name) is not None:
                allowed = "None: it would need all rows at each update"
                raise wrong(f"{where}.{name} with rows", getattr(strategy, name), allowed)
        if strategy.embedding_decay:
            allowed = "0: a row that a batch does not take is not touched"
            raise wrong(f"{where}.embedding_decay with rows", strategy.embedding_decay, allowed)
        if strategy.compile:
            allowed = "False: a lookup keeps its gradient, which a compiler would leave out"
            raise wrong(f"{where}.compile with rows", strategy.compile, allowed)
