"""Every figure of the main path, peer and project in one run.

    python bench/main_path.py --quick --json

prints one JSON object a line: figure, value, low, high, peer, goal. A ratio `x_vs_y` is speed over
speed, higher is better. A figure that could not be measured is absent; why is on standard error.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.figure import show_all

MODULES = ("quality", "transform", "loop", "data_loop", "startup", "skew", "memory")

if __name__ == "__main__":
    sys.exit(show_all(__doc__, MODULES))
