"""Where the fuzz programs and what they share with the server's tests lie."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "serve")]
