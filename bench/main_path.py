"""Every figure of the main path, peer and project in one run.

    python bench/main_path.py --quick --json

prints one JSON object a line: figure, value, low, high, peer, goal. A ratio `x_vs_y` is speed over
speed, higher is better. A figure that could not be measured is absent; why is on standard error.
"""

import importlib
import os
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.figure import show, words

# As the command line has it: on a shared machine, waiting threads that spin measure the neighbours.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

MODULES = ("quality", "transform", "loop", "data_loop", "startup", "skew", "memory")


def main() -> int:
    options = words(__doc__, MODULES)
    failed = 0
    for name in options.only or MODULES:
        try:
            for figure in importlib.import_module(f"bench.{name}").figures(options.quick):
                show(figure, options.json)
        except Exception:  # a peer that does not run must not hide the other figures
            failed += 1
            print(f"bench/{name}.py could not be measured:", file=sys.stderr)
            traceback.print_exc()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
