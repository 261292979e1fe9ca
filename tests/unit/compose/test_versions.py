"""Secrets and configs under new versions."""

from __future__ import annotations

from overlace.compose.versions import (
    VERSION_OF,
    Choice,
    Stored,
    Wish,
    choose,
    labels_of,
    versioned_name,
    versions_of,
)
from overlace.model.specs import ConfigSpec, Driver, SecretSpec

STACK = {"com.docker.stack.namespace": "st"}


def wish(data: bytes = b"new", name: str = "st_pw", kind: str = "secret") -> Wish:
    spec = SecretSpec(name, STACK, data) if kind == "secret" else ConfigSpec(name, STACK, data)
    return Wish(kind, "pw", spec)


def stored(id: str, name: str, of: str = "") -> Stored:
    return Stored(id, name, 1, STACK | ({VERSION_OF: of} if of else {}))


def test_the_first_version_has_the_name_docker_gives_it() -> None:
    assert choose(wish(), [], {}) == Choice(wish(), "st_pw", None)


def test_one_with_the_same_content_is_used_whoever_made_it() -> None:
    plain, other = stored("1", "st_pw"), stored("2", "st_pw-0123", of="st_pw")
    assert choose(wish(), [plain], {"1": True}).stored == plain
    assert choose(wish(), [plain, other], {"1": False, "2": True}).stored == other
    assert choose(wish(), [other], {"2": True}).name == "st_pw-0123", "found by its label, not by its name"


def test_other_content_gets_a_name_made_of_it() -> None:
    plain = stored("1", "st_pw")
    first, second = (choose(wish(data), [plain], {"1": False}) for data in (b"a", b"b"))
    assert first.stored is None and first.name.startswith("st_pw-") and first.name != second.name
    assert first.name == versioned_name(wish(b"a")), "a deploy that died finds what it made"
    assert labels_of(first) == {**STACK, VERSION_OF: "st_pw"}
    assert labels_of(Choice(wish(), "st_pw", None)) == STACK
    config = versioned_name(wish(b"a", kind="config"))
    assert config.startswith("st_pw-") and config != first.name


def test_long_names_stay_within_the_limit() -> None:
    name = versioned_name(wish(name="x" * 64))
    assert len(name) == 64 and name.startswith("xxx")


def test_whose_versions() -> None:
    plain, ours = stored("1", "st_pw"), stored("2", "st_pw-1", of="st_pw")
    theirs = Stored("3", "other", 1, {"com.docker.stack.namespace": "other", VERSION_OF: "st_pw"})
    assert versions_of(wish(), "st", [plain, ours, theirs, stored("4", "st_more")]) == [plain, ours]


def test_a_driver_keeps_its_secret() -> None:
    driven = Wish("secret", "pw", SecretSpec("st_pw", STACK, b"", Driver("vault")), rotates=False)
    plain = stored("1", "st_pw")
    assert choose(driven, [plain], {}).stored == plain
