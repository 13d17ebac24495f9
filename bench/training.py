"""Every figure of training, peer and project in one run.

    python bench/training.py --quick --json

prints one JSON object a line: figure, value, low, high, peer, goal. A ratio `x_vs_y` is speed over
speed, higher is better. A figure that could not be measured is absent; why is on standard error.
Each part is a script of its own, whose first lines say what is compared with what.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.figure import show_all

MODULES = ("loop", "data_loop", "distributed", "parameter_server", "kills", "privacy", "gpu")

if __name__ == "__main__":
    sys.exit(show_all(__doc__, MODULES))
