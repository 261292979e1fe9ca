"""A node's identity on disk is whole, private and its own swarm's, whatever happens while it is written."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from overlace.model.errors import InvalidArgument, Unavailable
from overlace.security import identity as module
from overlace.security.ca import CertificateAuthority, new_csr, new_key_pem
from overlace.security.identity import (
    found_identity,
    identity_dir,
    load_identity,
    renew_at,
    save_identity,
)

NOW = time.time_ns()


def pair(ca: CertificateAuthority, node_id: str = "n") -> tuple[str, str]:
    key = new_key_pem()
    return key, ca.issue(new_csr(key), node_id=node_id, role="worker", cluster_id="c", now=NOW).pem


def test_it_is_found_again_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    assert load_identity(tmp_path) is None
    ca = CertificateAuthority.create(NOW)
    made = found_identity(tmp_path, ca, node_id="n", cluster_id="c", now=NOW, life_ns=10**15)
    kept = load_identity(tmp_path)
    assert kept is not None and kept.facts == made.facts and kept.role == "manager"
    folder = identity_dir(tmp_path)
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in folder.iterdir()} == {
        "node.pem": "0o600",
        "ca.pem": "0o600",
    }
    assert folder.stat().st_mode & 0o777 == 0o700
    assert "PRIVATE" not in repr(kept)


def test_a_certificate_of_another_ca_is_not_taken(tmp_path: Path) -> None:
    ca, other = CertificateAuthority.create(NOW), CertificateAuthority.create(NOW)
    key, certificate = pair(other)
    with pytest.raises(InvalidArgument, match="not signed by the swarm's CA"):
        save_identity(tmp_path, ca.cert_pem, key, certificate)
    assert load_identity(tmp_path) is None


@pytest.mark.parametrize("crash_at", range(8))
def test_a_crash_while_changing_swarms_leaves_one_whole_identity_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    first, second = CertificateAuthority.create(NOW), CertificateAuthority.create(NOW)
    save_identity(tmp_path, first.cert_pem, *pair(first, "old"))
    steps = 0
    real = {name: getattr(os, name) for name in ("replace", "fsync", "unlink")}

    def step(name: str):  # type: ignore[no-untyped-def]
        def act(*args, **more):  # type: ignore[no-untyped-def]
            nonlocal steps
            if steps == crash_at:
                raise OSError("no space left on device")
            steps += 1
            return real[name](*args, **more)

        return act

    for name in real:
        monkeypatch.setattr(module.os, name, step(name))
    try:
        save_identity(tmp_path, second.cert_pem, *pair(second, "new"))
        completed = True
    except Unavailable:
        completed = False
    monkeypatch.undo()
    kept = load_identity(tmp_path)
    if completed:
        assert kept is not None and kept.node_id == "new"
    else:
        assert kept is None or kept.node_id in ("old", "new")


def test_damage_is_named_with_a_remedy(tmp_path: Path) -> None:
    ca = CertificateAuthority.create(NOW)
    save_identity(tmp_path, ca.cert_pem, *pair(ca))
    (identity_dir(tmp_path) / "ca.pem").write_text(CertificateAuthority.create(NOW).cert_pem)
    with pytest.raises(InvalidArgument, match="damaged: its certificate is not the swarm's; leave the swarm"):
        load_identity(tmp_path)
    (identity_dir(tmp_path) / "node.pem").write_text("")
    with pytest.raises(InvalidArgument, match="damaged"):
        load_identity(tmp_path)


def test_renewal_is_spread_over_the_third_fifth_of_life() -> None:
    rng = random.Random(1)
    dates = [renew_at(1000, 2000, rng) for _ in range(1000)]
    assert 1500 <= min(dates) < 1520 and 1780 < max(dates) <= 1800
