"""Every figure of the server on model A, peers and project in one run.

    python bench/serving.py --quick --json

prints one JSON object a line: figure, value, low, high, peer, goal. `rps_vs_…` and `grpc_vs_…`
are speed over speed, higher is better; `p50_c1_vs_floor`, `binary_64_vs_…` and
`reload_p99_vs_steady` are seconds over seconds, and less is better, as it is for counts, seconds
and megabytes. Concurrency is the number of connections, each with one request under way. A figure
that could not be measured is absent; why, and what each was made of, is on standard error.

    python bench/serving.py --address http://127.0.0.1:8000 --model model_a

measures a running V2 server beside ours instead.
"""

import argparse
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import behaviour, soak, speed, v2_address
from bench.figure import Figure, show
from bench.load import missing
from bench.ours import Place, place
from bench.processes import adopt_orphans, end_all

Measure = Callable[[Place, bool], Iterator[Figure]]

MEASURES: dict[tuple[str, ...], Measure] = {
    ("cpu_us_per_request_c64",): speed.cpu,
    ("p50_c1_vs_floor",): speed.floor,
    ("binary_64_vs_ort", "binary_64_vs_bare"): speed.binary,
    ("ready_seconds",): behaviour.ready,
    ("worker_mb",): behaviour.memory,
    ("reload_p99_vs_steady",): behaviour.reload,
    ("poisoned_good_failed",): behaviour.poison,
    ("drain_lost",): behaviour.drain,
    ("overload_goodput", "overload_extra_mb"): behaviour.overload,
    ("kill_worker_succeeded",): behaviour.kill,
    ("grpc_vs_grpc_aio_c16",): speed.grpc,
    ("rps_vs_best_python_peer_c1", "rps_vs_best_python_peer_c16", "rps_vs_best_python_peer_c64"):
        speed.beside_python_peers,
}  # fmt: skip
"""Which figures come of one measurement; the soak, whose length is an option, comes last."""
SOAK = ("soak_memory_growth", "soak_5xx")
FIGURES = [name for names in (*MEASURES, SOAK) for name in names]


def main() -> int:
    options = _options()
    for number in (signal.SIGINT, signal.SIGTERM):  # a background job has the first one ignored
        signal.signal(number, signal.default_int_handler)
    adopt_orphans()
    try:
        lacking = missing()
        if lacking:
            print(f"not installed: {', '.join(lacking)}; `make bench-setup` as root does that. "
                  "What they measure is absent.", file=sys.stderr)  # fmt: skip
        with place() as at:
            measures = [run for names, run in _chosen(options) if _wanted(names, options.only)]
            return 1 if sum(_measure(run, at, options) for run in measures) else 0
    except KeyboardInterrupt:
        return 130
    finally:
        end_all()


def _chosen(options: argparse.Namespace) -> list[tuple[tuple[str, ...], Measure]]:
    if options.address:
        beside = partial(v2_address.beside, address=options.address, model=options.model)
        return [((), beside)]
    seconds = options.soak or (soak.QUICK_SECONDS if options.quick else soak.FULL_SECONDS)
    return [*MEASURES.items(), (SOAK, lambda at, quick: soak.soak(at, seconds, options.soak_rate))]


def _wanted(names: tuple[str, ...], only: list[str] | None) -> bool:
    return not (only and names) or any(name in only for name in names)


def _measure(run: Measure, at: Place, options: argparse.Namespace) -> bool:
    """Show what one measurement gives; whether it failed."""
    try:
        for figure in run(at, options.quick):
            if not options.only or figure["figure"] in options.only or options.address:
                show(figure, options.json)
    except Exception:  # one that does not run must not hide the other figures
        print("could not be measured:", file=sys.stderr)
        traceback.print_exc(limit=-2)
        return True
    return False


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--only", type=_figures, metavar="FIGURE,…", help=", ".join(FIGURES))
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="how long the soak lasts")
    parser.add_argument("--soak-rate", type=float, metavar="N", default=soak.RATE,
                        help="requests a second of the soak")  # fmt: skip
    parser.add_argument("--address", help="of a running V2 server, http://host:port")
    parser.add_argument("--model", default="model_a", help="its name on that server")
    return parser.parse_args()


def _figures(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"found {', '.join(unknown)}, allowed: {', '.join(FIGURES)}"
        )
    return names


if __name__ == "__main__":
    sys.exit(main())
