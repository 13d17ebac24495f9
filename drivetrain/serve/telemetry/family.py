"""Series of one metric, and their text in Prometheus' exposition format.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/, text format 0.0.4.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from drivetrain.serve.execution.statistics import Tally

OLDER = "older"
"""The version under which the others' counts go on: the sums of an alias must not fall, or they
would look as if its counters had begun anew."""

Numbers = Sequence[float]
"""What a series has counted: one number, or a histogram's counts and then its sum."""
Figures = Mapping[str, Sequence[tuple[Sequence[str], Numbers]]]
"""What a process has counted: for each metric, the labels' values and numbers of each series."""


class Counter:
    """A number that grows, or a gauge that is set."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def numbers(self) -> Numbers:
        return (self.value,)

    def add(self, numbers: Numbers) -> None:
        self.value += numbers[0]

    def samples(self, name: str, labels: str, numbers: Numbers) -> Iterator[str]:
        yield f"{name}{_braced(labels)} {_number(numbers[0])}"


class Reading:
    """A number that is asked for when it is read; None while there is none, and no sample."""

    __slots__ = ("before", "read")

    def __init__(self, read: Callable[[], float | None]) -> None:
        self.read = read
        self.before = 0.0

    def numbers(self) -> Numbers:
        found = self.read()
        return () if found is None else (self.before + found,)

    def add(self, numbers: Numbers) -> None:
        self.before += numbers[0]

    def samples(self, name: str, labels: str, numbers: Numbers) -> Iterator[str]:
        yield f"{name}{_braced(labels)} {_number(numbers[0])}"


class Histogram:
    """How often a value fell at or below each bound, and the sum of all values."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def numbers(self) -> Numbers:
        return (*self.counts, self.sum)

    def add(self, numbers: Numbers) -> None:
        for place, count in enumerate(numbers[:-1]):
            self.counts[place] += int(count)
        self.sum += numbers[-1]

    def samples(self, name: str, labels: str, numbers: Numbers) -> Iterator[str]:
        total = 0
        for bound, count in zip((*self.bounds, float("inf")), numbers[:-1], strict=True):
            total += int(count)
            le = f'le="{_number(bound)}"'
            yield f"{name}_bucket{_braced(f'{labels},{le}' if labels else le)} {total}"
        yield f"{name}_sum{_braced(labels)} {_number(numbers[-1])}"
        yield f"{name}_count{_braced(labels)} {total}"


Child = TypeVar("Child", Counter, Reading, Histogram, Tally)


class Family(Generic[Child]):
    """All series of one metric, told apart by the values of their labels.

    Args:
        name: the metric's name.
        kind: ``counter``, ``gauge`` or ``histogram``.
        help: what it says.
        labels: their names.
        make: a new series.
        fold: one number out of those that several processes give.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        help: str,
        labels: Sequence[str],
        make: Callable[[], Child],
        fold: Callable[[Iterable[float]], float] = sum,
    ) -> None:
        self.name = name
        self.kind = kind
        self.help = help
        self.labels = tuple(labels)
        self.lasting = kind != "gauge"
        """Whether it still counts when the process that counted has ended."""
        self._make = make
        self._fold = fold
        self._children: dict[tuple[str, ...], Child] = {}

    def of(self, *values: str) -> Child:
        """The series with these label values, made if need be; hold on to it when speed counts."""
        assert len(values) == len(self.labels), (self.name, values)
        child = self._children.get(values)
        if child is None:
            child = self._children.setdefault(values, self._make())
        return child

    def set(self, child: Child, *values: str) -> None:
        """Put a series in its place."""
        self._children[values] = child

    def remove(self, *values: str) -> None:
        """End a series."""
        self._children.pop(values, None)

    def versions(self) -> Iterator[tuple[str, str]]:
        """The versions, behind their aliases, that series of this metric are about."""
        if self.labels[:2] == ("model", "version"):
            found = ((values[0], values[1]) for values in list(self._children))
            yield from (pair for pair in found if pair[1] not in ("", OLDER))

    def forget(self, model: str, version: str, *, heir: str = "") -> None:
        """End every series about a version; what it has counted goes on under the heir's."""
        if self.labels[:2] == ("model", "version"):
            for values in [v for v in list(self._children) if v[:2] == (model, version)]:
                if heir and self.lasting:
                    rest = zip(self.labels[2:], values[2:], strict=True)
                    kept = (heir if label == "against" else value for label, value in rest)
                    self.of(model, heir, *kept).add(self._children[values].numbers())
                self.remove(*values)

    def numbers(self) -> dict[tuple[str, ...], Numbers]:
        """What each series has counted, of those that have."""
        found = ((values, child.numbers()) for values, child in list(self._children.items()))
        return {values: numbers for values, numbers in found if numbers}

    def text(self, others: Sequence[Figures] = ()) -> Iterator[str]:
        """The lines of this metric, together with what other processes have counted."""
        yield f"# HELP {self.name} {_escape(self.help, quote=False)}"
        yield f"# TYPE {self.name} {self.kind}"
        numbers = self.numbers()
        for figures in others:
            for key, theirs in figures.get(self.name, ()):
                ours = numbers.get(tuple(key))
                numbers[tuple(key)] = (
                    theirs
                    if ours is None
                    else [self._fold(both) for both in zip(ours, theirs, strict=True)]
                )
        form = self._make()
        for values, found in numbers.items():
            pairs = zip(self.labels, values, strict=True)
            labels = ",".join(f'{label}="{_escape(value)}"' for label, value in pairs)
            yield from form.samples(self.name, labels, found)


def _escape(text: str, quote: bool = True) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quote else text


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    if value == float("-inf"):
        return "-Inf"
    if value != value:
        return "NaN"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)
