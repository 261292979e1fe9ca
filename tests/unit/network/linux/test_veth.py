"""Interfaces that go while they are worked on."""

from __future__ import annotations

import errno

import pytest

from overlace.network.linux.veth import unless_gone


def test_an_interface_that_has_gone_is_no_failure_and_others_are() -> None:
    with unless_gone():
        raise OSError(errno.ENODEV, "neighbour 10.0.0.12: No such device")
    with pytest.raises(PermissionError), unless_gone():
        raise OSError(errno.EPERM, "not permitted")
