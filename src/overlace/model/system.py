"""Which operating system this process runs on, for the few places where the two differ.

Owns one constant. A constant of ours, not `sys.platform`: the type checker would not look at the other system's half.
"""

from __future__ import annotations

import os

ON_WINDOWS = os.name == "nt"
