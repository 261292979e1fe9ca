"""The bench is beside the program, not in it: let its tests import it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))
