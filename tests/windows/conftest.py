"""The cases of tests/host, run here by a Windows Python under Wine. `make windows` installs what that needs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))
