"""Names of volumes."""

from __future__ import annotations

import pytest

from overlace.model.errors import InvalidArgument
from overlace.model.volumes import check_volume_name


def test_a_name_has_to_fit_a_folder() -> None:
    check_volume_name("v" * 255)
    with pytest.raises(InvalidArgument, match="too long for a local volume name"):
        check_volume_name("v" * 256)
