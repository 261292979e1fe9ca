"""Image references, as people write them and in full."""

from __future__ import annotations

import pytest

from overlace.model.errors import InvalidArgument
from overlace.model.reference import is_insecure, parse_reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    "text,full,familiar",
    [
        ("nginx", "docker.io/library/nginx", "nginx"),
        ("nginx:1.2", "docker.io/library/nginx:1.2", "nginx:1.2"),
        ("team/app", "docker.io/team/app", "team/app"),
        ("docker.io/library/nginx", "docker.io/library/nginx", "nginx"),
        ("index.docker.io/nginx", "docker.io/library/nginx", "nginx"),
        ("host:5000/a/b:1", "host:5000/a/b:1", "host:5000/a/b:1"),
        ("localhost/a", "localhost/a", "localhost/a"),
        ("reg.lan/a", "reg.lan/a", "reg.lan/a"),
        ("[fd00::1]:5000/a", "[fd00::1]:5000/a", "[fd00::1]:5000/a"),
        ("a@" + DIGEST, "docker.io/library/a@" + DIGEST, "a@" + DIGEST),
        ("a:1@" + DIGEST, "docker.io/library/a:1@" + DIGEST, "a:1@" + DIGEST),
        ("host:5000", "docker.io/library/host:5000", "host:5000"),
        ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
    ],
)
def test_forms(text: str, full: str, familiar: str) -> None:
    ref = parse_reference(text)
    assert (str(ref), ref.familiar) == (full, familiar)
    assert parse_reference(ref.familiar) == ref
    assert parse_reference(str(ref)) == ref


def test_pinning() -> None:
    assert parse_reference("nginx").with_digest(DIGEST).familiar == f"nginx:latest@{DIGEST}"
    assert parse_reference("nginx:1").with_digest(DIGEST).familiar == f"nginx:1@{DIGEST}"
    assert parse_reference(f"nginx@{DIGEST}").with_default_tag().tag == ""


@pytest.mark.parametrize(
    "text",
    ["", "Upper", "a/Upper", "a b", "a:", "a:b:c", "a//b", "/a", "a/", "-a", "a@sha256:1", "a@", "nginx\n", "a" * 300,
     "b" * 64 + "\n", "f" * 64],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_reference(text)


def test_which_registries_may_go_without_verified_tls() -> None:
    listed = ["reg.lan:5000", "other", "172.28.0.0/16"]
    allowed = [
        "reg.lan:5000",
        "other",
        "other:80",
        "172.28.3.250:5000",
        "127.0.0.1:5000",
        "127.9.9.9",
        "[::1]:5000",
        "localhost:5000",
        "localhost",
    ]
    refused = ["reg.lan", "reg.lan:5001", "172.29.0.1", "docker.io", "10.0.0.1:5000", "127.0.0.1.example"]
    assert all(is_insecure(name, listed) for name in allowed)
    assert not any(is_insecure(name, listed) for name in refused)
