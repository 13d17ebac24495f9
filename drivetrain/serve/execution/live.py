"""What a graph learns while it is served: where its live tensors come from, and one run's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from drivetrain.core.batch import Array
from drivetrain.core.bundle import GRAPH, Bundle
from drivetrain.core.initializers import initializers
from drivetrain.core.learner_tensors import LIVE, SPEC
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
        find: gives further ones, for all rows together, by what takes too long for the loop's
            thread; a run without them answers the same.
    """

    rows: Mapping[str, Array]
    whole: Mapping[str, Array]
    release: Callable[[], object]
    find: Callable[[], Mapping[str, Array]] = dict[str, Array]

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
        from drivetrain.core.online import Spec

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

    def learner(self) -> "Learner":
        """As training left it.

        Raises:
            ValueError: not all of it is in the graph.
        """
        from drivetrain.core.learner import Learner

        found = Learner.of(self._graph)
        assert found is not None, "its declaration was found, and it is asked before forget()"
        return found

    def forget(self) -> None:
        """Let go of the graph's bytes: its learner is made."""
        self._graph = b""
