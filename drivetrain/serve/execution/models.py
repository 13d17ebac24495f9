"""What is served: a verified bundle, loaded and warmed up, under the alias that clients name."""

import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from drivetrain.core.batch import PIXELS_SUFFIX, Array
from drivetrain.core.bundle import Bundle, digest_of
from drivetrain.core.errors import wrong
from drivetrain.core.placement import CPU, OPENVINO
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.serve.execution.bound import Bound
from drivetrain.serve.execution.columns import Columns, Values
from drivetrain.serve.execution.filling import Fed, Filling, Lookup
from drivetrain.serve.execution.live import Learning, Live
from drivetrain.serve.execution.loading import Loader

log = logging.getLogger("drivetrain.serve")

VERSION_DIGITS = 12
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NOTHING: Mapping[str, Array] = {}
_WARM_ROWS = 16
_SLOW_SECONDS = 5e-3
"""Where one row takes longer a start does not wait for so many, but for half of them."""
_PAYS = 0.8
"""A batch that takes more than this share of the runs of its rows is not worth waiting for."""
_APART = 0.75
"""A half of a batch that takes more than this share of the whole is not worth its own thread."""
_BESIDE = 0.8
"""The same of what came later than the other half, and would else wait for its end."""


def checked_name(name: str) -> str:
    """A name that is safe in a URL, a path and a label.

    Raises:
        ValueError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise wrong(
            "model name",
            name,
            "1 to 128 letters, digits, '.', '_' and '-', a letter or digit first",
        )
    return name


@dataclass(frozen=True)
class Artefact:
    """A stored bundle: its digest, and the directory or packed file that holds it."""

    digest: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Which bundles the requests of an alias go to.

    Attributes:
        stable: answers.
        canary: answers a share of the requests in its stead, or None.
        share: of the requests, 0 to 1.
        shadow: is asked what the others are asked, and nobody gets its answers; or None.

    Raises:
        ValueError: the share is none.
    """

    stable: Artefact
    canary: Artefact | None = None
    share: float = 0.0
    shadow: Artefact | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise wrong("share", self.share, "0 to 1 of the requests")

    @property
    def artefacts(self) -> tuple[Artefact, ...]:
        """All of them."""
        found = (self.stable, self.canary, self.shadow)
        return tuple(artefact for artefact in found if artefact is not None)


Role = Literal["stable", "canary", "shadow"]
"""What a version is to its alias."""
Resolve = Callable[[], Traffic]
"""Asks what an alias means now."""


def pinned(path: Path) -> Resolve:
    """An alias that always means the bundle at ``path``."""
    traffic = Traffic(stable=Artefact(digest_of(path), path))
    return lambda: traffic


class Cost:
    """How long a run takes, by rows: two numbers from the warm-up, corrected by what is seen.

    Args:
        one: seconds of a run over one row.
        several: of one over ``rows``.
        rows: how many these are.
        steady: see below.
        half: of one over half of ``rows``; None where it lies on the line between the two. It
            does not where a product of one row is done another way than that of two; two rows
            and more are expected on the line through these two.

    Attributes:
        pays: whether a batch costs clearly less than its requests alone.
        splits: whether two runs at once, on a thread each, give large batches clearly sooner.
        steady: whether the number of rows tells the time; an encoded image takes as long to
            decode as its sender likes.
    """

    def __init__(
        self,
        one: float,
        several: float,
        rows: int,
        steady: bool = True,
        half: float | None = None,
    ) -> None:
        self.steady = steady
        self.per_row = max(several - one, 0.0) / (rows - 1)
        self.fixed = max(one - self.per_row, 0.0)
        self.pays = several < _PAYS * rows * one
        self.scale = 1.0
        half = self.seconds(rows // 2) if half is None else half
        each = max(several - half, 0.0) / (rows - rows // 2)
        self._lines = one, several - each * rows, each
        self.splits = self._half(2 * rows) <= _BESIDE

    def seconds(self, rows: int, runs: int = 1) -> float:
        """The expected time of so many rows, in one run or several."""
        return self.scale * (self.fixed * runs + self.per_row * rows)

    def divides(self, rows: int) -> bool:
        """Whether two halves of a batch, on a thread each, are there clearly before the whole."""
        return rows > 1 and self._half(rows) <= _APART

    def _half(self, rows: int) -> float:
        """The time of half of a batch as a share of the whole's."""
        whole = self._run(rows)
        return self._run((rows + 1) // 2) / whole if whole > 0 else 1.0

    def _run(self, rows: int) -> float:
        one, fixed, each = self._lines
        return one if rows == 1 else max(one, fixed + each * rows)

    def seen(self, rows: int, seconds: float) -> None:
        """Learn from a run; one slow run moves the expectation by no more than a fifth."""
        expected = self.seconds(rows)
        if expected > 0:
            ratio = min(max(seconds / expected, 0.2), 5.0)
            self.scale = min(max(self.scale * (0.95 + 0.05 * ratio), 0.1), 100.0)


class Model:
    """One version of one alias, ready to run.

    Attributes:
        name: the alias.
        version: the first twelve digits of the bundle's digest.
        inputs: what a request brings: the raw columns, but for windows, which are filled in.
        filling: how windows come into the rows; None where there are none.
        lookup: gives them, once the model is served; None where there are none.
        learning: what learns of its graph while it is served; None where nothing does.
        live: gives what was learnt, once the model is served; None where nothing is.
        columns: the compiled path from values to feeds.
        outputs: the names of the predictions.
        cost: how long a run takes.
    """

    def __init__(self, name: str, bundle: Bundle, loader: Loader) -> None:
        self.name = checked_name(name)
        self.bundle = bundle
        self.digest = bundle.digest
        self.version = bundle.digest[:VERSION_DIGITS]
        self.filling = Filling.of(bundle.manifest)
        self.inputs = bundle.manifest.inputs if self.filling is None else self.filling.given
        self.lookup: Lookup | None = None
        self.outputs = list(bundle.manifest.outputs.names)
        self._session = loader.session(bundle)
        self.learning = Learning.of(bundle, self._session.live)
        self.live: Live | None = None
        filled = () if self.filling is None else self.filling.filled.fields
        columns = self.columns = Columns(self.inputs, self._session.inputs, filled)
        outputs = bundle.manifest.outputs.fields
        whole = not filled and self.learning is None
        form = columns.form if whole else None  # what is filled in or learnt lies in none of these
        self.bound = Bound.of(self._session, form, columns.plain, outputs)
        """The quick way to run it; None if there is none."""
        self.cost = self._warm_up()

    @classmethod
    def load(cls, name: str, artefact: Artefact, loader: Loader | None = None) -> "Model":
        """Verify, load and warm up a stored bundle; without a loader it is loaded plainly.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not the bundle that its digest names, or its graph does not give
                what its manifest says.
        """
        return cls(name, Bundle.open(artefact.path, artefact.digest), loader or Loader())

    @property
    def artefact(self) -> Artefact:
        """Where it was loaded from."""
        return Artefact(self.digest, self.bundle.path)

    @property
    def placement(self) -> str:
        """Where it runs, as :mod:`drivetrain.core.placement` names it."""
        return self._session.placement

    @property
    def backend(self) -> str:
        """What runs it, in the words of V2 and Triton."""
        return "openvino" if self.placement in OPENVINO else "onnxruntime"

    @property
    def whole(self) -> Schema:
        """The columns of a row as the graph sees it, windows behind what the request brought."""
        return self.inputs if self.filling is None else self.filling.whole

    @property
    def fed(self) -> tuple[Fed, ...]:
        """What observations are kept for."""
        kept = () if self.filling is None else self.filling.kept
        return kept if self.learning is None else (*kept, self.learning)

    def run(
        self, requests: Sequence[Sequence[Values]], live: Mapping[str, Array] = NOTHING
    ) -> tuple[list[Array], list[Array]]:
        """The columns' arrays of all requests together, and the outputs for them.

        Args:
            requests: the columns of each; arrays where there are windows, with these filled in.
            live: what was learnt, for all rows of all requests.
        """
        if self.filling is None:
            arrays = self.columns.arrays(requests)
        else:
            arrays = [np.concatenate(parts) for parts in zip(*requests, strict=True)]  # pyright: ignore[reportArgumentType, reportCallIssue]
        return arrays, self.infer({**self.columns.feeds(arrays), **live})

    def infer(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs for what the columns feed, and live tensors where they are fed too."""
        return self._session.raw(feeds, self.outputs)

    def _warm_up(self) -> Cost:
        """Run for one row and for several, until the times settle.

        On the CPU a run is one thread's, and what others took of that CPU meanwhile says nothing
        of it: they hold up a long run rather than a short one, so that no batch would seem to pay.
        """
        clock = time.thread_time if self.placement == CPU else time.perf_counter
        one = self._settled(1, clock)
        rows = _WARM_ROWS if one <= _SLOW_SECONDS else _WARM_ROWS // 2
        half, several = (self._settled(n, clock) for n in (rows // 2, rows))
        steady = not any(name.endswith(PIXELS_SUFFIX) for name, _ in self._session.inputs)
        return Cost(one, several, rows, steady, half)

    def _settled(self, rows: int, clock: Callable[[], float]) -> float:
        """The seconds of a run over so many rows, the least of some."""
        batch = [[_missing(field, rows) for field in self.whole]]
        least, spent = math.inf, 0.0
        for attempt in range(10):
            started = clock()
            outputs = self._quick(batch, rows) if attempt else self.run(batch)[1]
            seconds = clock() - started
            least, spent = min(least, seconds), spent + seconds
            if attempt == 0:
                self._check_outputs(outputs, rows)
            if spent > 0.05 and attempt:
                break
        return least

    def _quick(self, batch: Sequence[Sequence[Values]], rows: int) -> list[Array]:
        """The outputs as the engine gets them; if the graph's do not lie as the manifest has
        them, nothing can be bound."""
        if self.bound is not None:
            try:
                self.columns.fill(batch, self.bound.memory, rows)
                return self.bound.run(rows)
            except Exception as error:
                log.debug("version %s runs unbound: %s", self.version, error)
                self.bound = None
        return self.run(batch)[1]

    def _check_outputs(self, outputs: Sequence[Array], rows: int) -> None:
        for field, array in zip(self.bundle.manifest.outputs, outputs, strict=True):
            if not array.shape or array.shape[0] != rows:
                raise wrong(
                    f"output {field.name!r} of {self.name} for {rows} rows",
                    array.shape,
                    f"a first dimension of {rows}",
                )


@dataclass(frozen=True)
class Release:
    """The loaded versions of one alias, as :class:`Traffic` shares its requests among them."""

    stable: Model
    canary: Model | None = None
    share: float = 0.0
    shadow: Model | None = None

    @property
    def name(self) -> str:
        """The alias."""
        return self.stable.name

    @property
    def models(self) -> tuple[Model, ...]:
        """All of them, each once."""
        found = (self.stable, self.canary, self.shadow)
        return tuple(dict.fromkeys(model for model in found if model is not None))

    @property
    def roles(self) -> tuple[tuple[Role, Model], ...]:
        """Each version with what it is; one that is two things has the first role."""
        found: dict[Model, Role] = {self.stable: "stable"}
        if self.canary is not None:
            found.setdefault(self.canary, "canary")
        if self.shadow is not None:
            found.setdefault(self.shadow, "shadow")
        return tuple((role, model) for model, role in found.items())

    @property
    def traffic(self) -> Traffic:
        """What this is the loaded form of."""
        canary, shadow = self.canary, self.shadow
        return Traffic(
            stable=self.stable.artefact,
            canary=None if canary is None else canary.artefact,
            share=self.share,
            shadow=None if shadow is None else shadow.artefact,
        )

    def __str__(self) -> str:
        text = f"{self.name} is now version {self.stable.version}"
        if self.canary is not None:
            text += f", {self.share:g} of the requests go to version {self.canary.version}"
        if self.shadow is not None:
            text += f", version {self.shadow.version} is its shadow"
        return text


def _missing(field: Field, rows: int) -> Array:
    """A column of missing values, which every graph of a bundle takes."""
    shape = (rows, *(1 if n is None else n for n in field.shape))
    if field.numpy == "object":
        return np.full(shape, "" if field.dtype == "string" else b"", np.object_)
    if field.shape:
        return np.zeros(shape, field.numpy)
    return np.full(shape, MISSING_INT if field.numpy == "int64" else np.nan, field.numpy)
