"""A later version of the data path, whose rows are larger: built from this one's sources with fields appended.

Owns making it and the text that starts a host's worker with it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from overlace.network.linux import build

GROWN = ("flow", "access", "affinity")
LAYOUT = 999
_START = """
import runpy, sys
from pathlib import Path
from overlace.network.linux import build, loader
loader.ensure_built = lambda over_ipv6=False: tuple(Path({folder!r}) / path.name for path in build.OBJECTS)
loader.layout_of = lambda hosts: {layout}
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def build_grown(folder: Path, *more: str) -> str:
    """Objects whose GROWN structs, and those named, have eight bytes more at the end. Returns what Host.start takes."""
    shutil.copytree(build.SOURCES, folder, ignore=shutil.ignore_patterns("*.o"))
    types = folder / "types.h"
    text = types.read_text()
    for name in (*GROWN, *more):
        text, found = re.subn(
            rf"(\nstruct {name} {{.*?)\n}};", r"\1\n\t__u64 appended;\n};", text, count=1, flags=re.S
        )
        assert found == 1, name
    types.write_text(text)
    for target in build.OBJECTS:
        build._build(folder / target.name)
    return _START.format(folder=str(folder), layout=LAYOUT)
