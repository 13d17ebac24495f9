"""One run of a graph over the requests of a batch, in which only the offender fails."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.core.pixels import Unfit
from drivetrain.serve.execution.bound import MOST_ROWS
from drivetrain.serve.execution.columns import Arrays, UnfitError, Values
from drivetrain.serve.execution.live import Moment
from drivetrain.serve.execution.models import Model
from drivetrain.serve.execution.packed import Packed

if TYPE_CHECKING:
    from drivetrain.serve.execution.task import Task

Outcome = tuple[Sequence[Array], list[Array]] | Exception


class Part(Sequence[Array]):
    """The rows of one request in the arrays of its batch, cut out only when somebody looks.

    Most requests are answered without anybody asking what they brought, and a slice of each
    column takes longer than the rest of the answer.

    Args:
        arrays: ``[rows, …]`` each.
        start: the first row.
        stop: the row behind the last one.
    """

    __slots__ = ("_arrays", "_rows")

    def __init__(self, arrays: Sequence[Array], start: int, stop: int) -> None:
        self._arrays = arrays
        self._rows = slice(start, stop)

    def __len__(self) -> int:
        return len(self._arrays)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [array[self._rows] for array in self._arrays[index]]
        return self._arrays[index][self._rows]


class Run(NamedTuple):
    """What became of a batch, and when, by ``time.monotonic()``.

    Attributes:
        outcomes: of each task; none where all were answered from one run, see :func:`parts`.
        begun: the joining of the inputs began.
        fed: the graph began.
        inferred: everything was computed.
        seconds: what the batch took, without what was run again alone.
        rows: of all its tasks.
        outputs: of all its tasks together, if they all were answered from one run.
        inputs: the columns of all of them, if these were joined to arrays.
    """

    outcomes: Sequence[Outcome]
    begun: float
    fed: float
    inferred: float
    seconds: float
    rows: int
    outputs: Sequence[Array] = ()
    inputs: Sequence[Array] | None = None


def compute(
    model: Model,
    batch: Sequence["Task"],
    begins: Callable[[], object] | None = None,
    filled: Sequence[Array] | None = None,
    moment: Moment | None = None,
) -> Run:
    """Run a batch; only the offender fails. The moment is let go of, whatever becomes of it.

    A task with a value that cannot be fed is known before the run. One that the graph refuses is
    not: then each runs alone.

    Args:
        model: the version that answers.
        batch: what it answers.
        begins: called before every run.
        filled: the columns of all tasks together with the windows behind them, where there are
            windows or live tensors.
        moment: the live tensors of all tasks together, where the graph has some.
    """
    try:
        return _computed(model, batch, begins, filled, moment)
    finally:
        if moment is not None:
            moment.release()


def _computed(
    model: Model,
    batch: Sequence["Task"],
    begins: Callable[[], object] | None,
    filled: Sequence[Array] | None,
    moment: Moment | None,
) -> Run:
    if begins is not None:
        begins()
    begun = fed = monotonic()
    rows = sum([task.rows for task in batch])
    bound = model.bound
    inputs: Sequence[Array] | None = None
    refused: Mapping[int, UnfitError] = {}
    try:
        requests = [task.columns for task in batch]
        if bound is not None and rows <= MOST_ROWS and bound.lock.acquire(blocking=False):
            try:
                model.columns.fill(requests, bound.memory, rows)
                fed = monotonic()
                outputs = bound.run(rows)
            finally:
                bound.lock.release()
        else:
            inputs = model.columns.arrays(requests) if filled is None else filled
            unfit: list[Unfit] = []
            feeds = model.columns.feeds(inputs, unfit)
            fed = monotonic()
            refused = _refused(batch, unfit)
            if moment is not None:
                feeds |= {**moment.feeds(), **moment.find()}
            outputs = model.infer(feeds) if len(refused) < len(batch) else []
        _check(outputs, rows)
    except Exception as error:
        seconds = monotonic() - begun
        # A binding says of whatever went wrong that the execution did; a plain run says what.
        alone = len(batch) == 1 and inputs is not None
        outcomes: list[Outcome] = (
            [error] if alone else [_alone(model, *t, begins) for t in _each(batch, filled, moment)]
        )
        return Run(outcomes, begun, fed, monotonic(), seconds, rows)
    inferred = monotonic()
    run = Run((), begun, fed, inferred, inferred - begun, rows, outputs, inputs)
    if not refused:
        return run
    found = [refused.get(number, part) for number, part in enumerate(parts(model, batch, run))]
    return run._replace(outcomes=found, outputs=(), inputs=None)


def parts(
    model: Model, batch: Sequence["Task"], run: Run
) -> Iterable[tuple[Sequence[Array], list[Array]]]:
    """The columns and the outputs of each task that was answered from one run with the others; cut
    out only where somebody asks for them."""
    return zip(_given(model, batch, run.inputs), _cut(batch, run.rows, run.outputs), strict=True)


def _given(
    model: Model, batch: Sequence["Task"], inputs: Sequence[Array] | None
) -> Iterator[Sequence[Array]]:
    """The columns of each task."""
    if inputs is None:
        for task in batch:
            given = task.columns
            yield given if type(given) is Packed else Arrays(model.columns, given)
        return
    start = 0
    for task in batch:
        yield Part(inputs, start, start := start + task.rows)


def _cut(batch: Sequence["Task"], rows: int, outputs: Sequence[Array]) -> Iterable[list[Array]]:
    """The outputs of each task; views, but those of a single one."""
    if len(batch) == 1:
        return [list(outputs)]
    if rows == len(batch) and outputs:  # each has one, so that is all: numpy cuts them sooner
        return map(list, zip(*[array[:, None] for array in outputs], strict=True))
    ends = list(accumulate([task.rows for task in batch], initial=0))
    return [[array[start:stop] for array in outputs] for start, stop in pairwise(ends)]


def _check(outputs: Sequence[Array], rows: int) -> None:
    """See that there is an answer for every row, which a graph may promise at its start and not
    keep: or somebody would get another's.

    Raises:
        ValueError: there is not.
    """
    for array in outputs:
        if len(array) != rows:
            raise wrong(f"an output of the graph for {rows} rows", array.shape, f"{rows} rows")


def _refused(batch: Sequence["Task"], unfit: Sequence[Unfit]) -> dict[int, UnfitError]:
    """What is wrong with the tasks that have values which cannot be fed, by their places."""
    if not unfit:
        return {}
    starts = list(accumulate((task.rows for task in batch), initial=0))
    refused: dict[int, UnfitError] = {}
    for value in unfit:
        place = bisect_right(starts, value.row) - 1
        refused.setdefault(place, UnfitError(str(value.error(starts[place]))))
    return refused


def _each(
    batch: Sequence["Task"], filled: Sequence[Array] | None, moment: Moment | None
) -> Iterator[tuple[int, Sequence[Values], Mapping[str, Array]]]:
    """The rows and columns of each task, with the windows behind them where there are windows; and
    what live tensors are for it."""
    start = 0
    for task in batch:
        stop = start + task.rows
        columns = task.columns if filled is None else [array[start:stop] for array in filled]
        yield task.rows, columns, {} if moment is None else moment.feeds(slice(start, stop))
        start = stop


def _alone(
    model: Model,
    rows: int,
    columns: Sequence[Values],
    live: Mapping[str, Array],
    begins: Callable[[], object] | None,
) -> Outcome:
    if begins is not None:
        begins()
    try:
        inputs, outputs = model.run([columns], live)
        _check(outputs, rows)
        return inputs, outputs
    except Exception as error:
        return error
