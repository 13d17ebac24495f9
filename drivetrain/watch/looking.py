"""Looks again and again, and shows each look, until it is told to stop."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from json import dumps
from typing import Any, Generic, Protocol, TextIO, TypeVar, cast

from drivetrain.watch.endpoint import Endpoint
from drivetrain.watch.terminal import Writer


class Look(Protocol):
    """All that one look found."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, or could not be looked at."""
        ...

    def line(self) -> str:
        """The look as one plain line."""
        ...

    def to_json(self) -> Mapping[str, Any]:
        """The look as plain data that JSON can say."""
        ...


L = TypeVar("L", bound=Look)


class Looking(ABC, Generic[L]):
    """Something that can be looked at again and again.

    Attributes:
        offered: what it offers to Prometheus, for people.
    """

    offered: str

    @abstractmethod
    def look(self) -> L:
        """Look once."""

    @abstractmethod
    def gauges(self, look: L) -> str:
        """A look as Prometheus scrapes it."""

    @abstractmethod
    def drawn(self, stream: TextIO) -> AbstractContextManager[Callable[[L], None]]:
        """A view on a terminal that each look draws anew."""

    def run(
        self,
        *,
        once: bool = False,
        json: bool = False,
        port: int | None = None,
        every: float | None = None,
        stream: TextIO | None = None,
    ) -> int:
        """Look until interrupted; the process' exit status.

        Args:
            once: look once; the status is then 1 if there is a problem.
            json: write each look as a line of JSON.
            port: also offer the figures to Prometheus on this port of the loopback; 0 takes a
                free one.
            every: seconds between two looks; None is 1 on a terminal and with ``json``, else 10.
            stream: where to write; None is standard output.
        """
        where = cast(TextIO, sys.stdout) if stream is None else stream
        drawn = where.isatty() and not json and not once
        pause = every if every is not None else (1.0 if drawn or json else 10.0)
        with ExitStack() as stack:
            offer: Callable[[str], None] = lambda text: None  # noqa: E731
            if port is not None:
                endpoint = stack.enter_context(Endpoint(port))
                offer = endpoint.offer
                print(f"{self.offered} at {endpoint.url}", file=sys.stderr)
            show = stack.enter_context(self.drawn(where)) if drawn else _writer(where, json)
            try:
                while True:
                    found = self.look()
                    offer(self.gauges(found))
                    show(found)
                    if once:
                        return 1 if found.problems else 0
                    time.sleep(pause)
            except KeyboardInterrupt:
                return 0


def _writer(stream: TextIO, as_json: bool) -> Callable[[Look], None]:
    write = Writer(stream)
    if as_json:
        return lambda look: write(dumps(look.to_json(), allow_nan=False))
    return lambda look: write(look.line())
