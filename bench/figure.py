"""A figure, how it is printed, and how two sides are timed in turn."""

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TypedDict


class Figure(TypedDict):
    """One measured figure with its spread; `goal` is what it is held against."""

    figure: str
    value: float
    low: float
    high: float
    peer: str
    goal: float


def figure(
    name: str, values: Sequence[float], peer: str, goal: float, value: float | None = None
) -> Figure:
    """The median of measured values with their least and greatest."""
    middle = statistics.median(values) if value is None else value
    return Figure(
        figure=name, value=middle, low=min(values), high=max(values), peer=peer, goal=goal
    )


def speed_ratios(
    ours: Callable[[], object], peer: Callable[[], object], rounds: int
) -> list[float]:
    """Speed of ours over speed of the peer, round by round, after a warm-up of each.

    The two take turns and swap who goes first, so that a machine that grows busy slows both.
    """
    for warm in (peer, ours):
        warm()
    ratios: list[float] = []
    for number in range(rounds):
        pair = (ours, peer) if number % 2 == 0 else (peer, ours)
        seconds = {side: seconds_of(side) for side in pair}
        ratios.append(seconds[peer] / seconds[ours])
    return ratios


def seconds_of(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def words(about: str | None, modules: Sequence[str] = ()) -> argparse.Namespace:
    """The options that every benchmark takes."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    if modules:
        parser.add_argument("--only", nargs="+", choices=modules, help="some of them")
    return parser.parse_args()


def show(measured: Figure, as_json: bool) -> None:
    """Print one figure."""
    if as_json:
        print(json.dumps(measured), flush=True)
        return
    spread = f"{measured['low']:.4g} to {measured['high']:.4g}"
    print(
        f"{measured['figure']:36}{measured['value']:>10.4g}   ({spread})   "
        f"goal {measured['goal']:g}, beside {measured['peer']}",
        flush=True,
    )


def show_all(about: str | None, modules: Sequence[str]) -> int:
    """Print the figures of several scripts; the exit status.

    One that does not run must not hide the figures of the others.

    Args:
        about: what ``--help`` says.
        modules: names in this folder, each with ``figures(quick)``.
    """
    # As the command line has it: threads that spin while they wait would measure the neighbours.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    options, failed = words(about, modules), 0
    for name in options.only or modules:
        if importlib.util.find_spec(f"bench.{name}") is None:
            print(f"bench/{name}.py is not here: its figures are absent", file=sys.stderr)
            continue
        try:
            for measured in importlib.import_module(f"bench.{name}").figures(options.quick):
                show(measured, options.json)
        except Exception:
            failed += 1
            print(f"bench/{name}.py could not be measured:", file=sys.stderr)
            traceback.print_exc()
    return 1 if failed else 0
