"""Which Windows a lab host's registry says it is."""

from __future__ import annotations

import pytest

from overlace.lab.windows.prefix import with_version
from overlace.model.errors import Unavailable

REGISTRY = r"""WINE REGISTRY Version 2

[Software\\\\Microsoft\\\\Windows NT] 1
"Kept"="1"

[Software\\\\Microsoft\\\\Windows NT\\\\CurrentVersion] 2
#time=1dd
"CurrentBuildNumber"="7601"
"DigitalProductId"=hex:00,\\
  00
"SystemRoot"="C:\\\\windows"

[Software\\\\Microsoft\\\\Windows NT\\\\CurrentVersion\\\\Fonts] 3
"CurrentBuildNumber"="not this one"
""".replace("\\\\", "\\")


def test_the_version_is_replaced_and_all_else_stays() -> None:
    changed = with_version(REGISTRY, "10.0.20348.2527")
    assert '"CurrentBuildNumber"="20348"\n' in changed and "7601" not in changed
    assert '"UBR"=dword:000009df' in changed and '"CurrentMajorVersionNumber"=dword:0000000a' in changed
    for line in REGISTRY.splitlines():
        assert line in changed or "7601" in line
    assert changed.index('"UBR"') < changed.index("Fonts]")


def test_a_registry_without_the_key() -> None:
    with pytest.raises(Unavailable, match="run scripts/windows again"):
        with_version("WINE REGISTRY Version 2\n", "10.0.20348.2527")
