"""Who hears a run: the terminal or a program, and what its site names."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.core.metric import Emit, fan_out
from drivetrain.core.site import Site

if TYPE_CHECKING:
    from drivetrain.core.system import System
    from drivetrain.events.stream import Stream


@contextmanager
def listening(system: "System | Stream", site: Site, *, as_json: bool = False) -> Iterator[Emit]:
    """The listeners of one run, closed at its end.

    Args:
        system: or a stream: gives the run its name.
        site: says who else hears it.
        as_json: lines of JSON on standard output, instead of lines for a person on standard error.
    """
    from drivetrain.watch.terminal import JsonLines, Terminal

    with ExitStack() as stack:
        shown = JsonLines(sys.stdout) if as_json else stack.enter_context(Terminal(sys.stderr))
        listeners: list[Emit] = [shown]
        if site.listen.tensorboard or site.listen.mlflow:
            from drivetrain.watch.listeners import Mlflow, TensorBoard

            run = system.digest[:12]
            if site.listen.tensorboard:
                directory = Path(site.listen.tensorboard) / f"{system.name}-{run}"
                listeners.append(stack.enter_context(TensorBoard(directory, tell=shown)))
            if site.listen.mlflow:
                mlflow = Mlflow(site.listen.mlflow, experiment=system.name, run=run, tell=shown)
                listeners.append(stack.enter_context(mlflow))
        yield fan_out(listeners)
