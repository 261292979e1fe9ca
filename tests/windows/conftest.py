"""The cases of tests/host, run here by a Windows Python under Wine. `make windows` installs what that needs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from overlace.lab.windows import wine
from overlace.model.errors import Unavailable

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))


@pytest.fixture(scope="session", autouse=True)
def windows_python() -> None:
    try:
        wine.ensure_current()
    except Unavailable as error:
        pytest.exit(error.message, returncode=1)
