"""Where the modules that tests of the core share lie."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
