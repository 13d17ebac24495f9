"""What a graph learns while it is served: where its live tensors come from, and one run's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from drivetrain.core.batch import Array
from drivetrain.core.bundle import GRAPH, Bundle
from drivetrain.core.initializers import initializers
from drivetrain.core.schema import Field, Schema

if TYPE_CHECKING:
    from drivetrain.core.learner import Learner

NONE: Mapping[str, "Learning"] = {}
"""Nothing that learns."""


@dataclass(frozen=True)
class Moment:
    """The live tensors of one run, by the graph's names for them.

    Attributes:
        rows: those that have a row for each row that is asked.
        whole: the others, which stay as they are until :attr:`release`.
        release: to be called when the run has ended, however it did; on any thread.
    """

    rows: Mapping[str, Array]
    whole: Mapping[str, Array]
    release: Callable[[], object]

    def feeds(self, rows: slice = slice(None)) -> dict[str, Array]:
        """What a run over some of the rows is fed."""
        return {**self.whole, **{name: array[rows] for name, array in self.rows.items()}}


class Live(Protocol):
    """Gives the live tensors of a run."""

    def __call__(self, arrays: Sequence[Array]) -> Moment:
        """Those of now; called on the loop's thread.

        Args:
            arrays: the columns that a request brings, ``[rows, …]`` each.
        """
        ...


class Learning:
    """The learner that lies in a graph, before and while it learns.

    Attributes:
        user: the raw column of who had something.
        item: the column of what they had.
    """

    def __init__(self, graph: bytes) -> None:
        from drivetrain.core.online import SPEC, Spec

        spec = Spec.from_json(initializers(graph, (SPEC,)).arrays[SPEC].item())
        self.user = Field(spec.user, spec.user_type)
        self.item = Field(spec.item, spec.item_type)
        self._graph = graph

    @classmethod
    def of(cls, bundle: Bundle, live: frozenset[str]) -> "Learning | None":
        """That of a bundle; None where its graph has none.

        Args:
            bundle: is read only if it has one.
            live: what its loaded graph can be fed beside its inputs.

        Raises:
            OSError: it cannot be read.
            ValueError: it was changed since it was verified, or is of a newer version.
        """
        if not live:  # as of nearly all graphs: what learns need not be imported
            return None
        from drivetrain.core.learner import LIVE

        if not any(name.endswith(LIVE) for name in live):
            return None
        return cls(bundle.read(GRAPH))

    @property
    def schema(self) -> Schema:
        """The columns that it observes."""
        return Schema((self.user, self.item))

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row must have to be observed."""
        return (self.user.name, self.item.name)

    @property
    def known(self) -> None:
        """The column of when a row became known: none, events count in the order they come."""
        return None

    def __str__(self) -> str:
        return f"{self.item.name} of {self.user.name}"

    def learner(self, state: bytes = b"") -> "Learner":
        """As training left it, or as it was.

        Args:
            state: what its ``dump`` gave; empty for none.

        Raises:
            ValueError: not all of it is in the graph, or the state is another's or damaged.
        """
        from drivetrain.core.learner import Learner

        if state:
            return Learner.load(state, self._graph)
        found = Learner.of(self._graph)
        assert found is not None, "its declaration was found, and it is asked before forget()"
        return found

    def forget(self) -> None:
        """Let go of the graph's bytes: its learner is made."""
        self._graph = b""
