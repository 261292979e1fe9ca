"""Who a container's process is: Docker's `user[:group]` looked up in the image's own passwd and group files.

Pure. Rules: moby/sys `user.GetExecUser`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from overlace.model.errors import InvalidArgument

_MAX_ID = 2**31 - 1
# Accounts every Windows container image has; on an emulated Windows host they are the superuser of a Linux
# process.
WINDOWS_ACCOUNTS = frozenset({"containeradministrator", "containeruser"})


class User(msgspec.Struct, frozen=True):
    uid: int = 0
    gid: int = 0
    additional: tuple[int, ...] = (0,)
    home: str = "/"


def _rows(text: str, fields: int) -> Iterable[list[str]]:
    for line in text.splitlines():
        row = line.strip().split(":")
        if len(row) >= fields and not row[0].startswith("#"):
            yield row


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _identifier(value: int, text: str) -> int:
    if value > _MAX_ID:
        raise InvalidArgument(f"user: {text}: uids and gids must be in range 0-{_MAX_ID}")
    return value


def find_user(text: str, passwd: str, group: str, groups: Iterable[str] = ()) -> User:
    """Resolve `text` (empty: root) and the supplementary `groups` against the content of the two files.

    Raises InvalidArgument in Docker's words for a name the image does not know.
    """
    user, _, group_name = text.partition(":")
    user = user or "0"
    wanted = _number(user)
    row = next(
        (r for r in _rows(passwd, 4) if r[0] == user or (wanted is not None and _number(r[2]) == wanted)),
        None,
    )
    if row is not None and (uid := _number(row[2])) is not None:
        gid, name, home = _number(row[3]) or 0, row[0], row[5] if len(row) > 5 and row[5] else "/"
    elif wanted is not None:
        uid, gid, name, home = _identifier(wanted, user), 0, "", "/"
    else:
        raise InvalidArgument(f"unable to find user {user}: no matching entries in passwd file")
    rows = list(_rows(group, 3))
    additional: list[int] = []
    if group_name:
        gid = _group(group_name, rows)
    elif name:
        for entry in rows:
            number = _number(entry[2])
            if number is not None and len(entry) > 3 and name in entry[3].split(","):
                additional.append(number)
    additional += [_group(item, rows) for item in groups]
    # The primary group is a supplementary one too, else mode 0705 lets its members in (CVE-2022-36109).
    return User(_identifier(uid, user), gid, tuple(dict.fromkeys((gid, *additional))), home)


def _group(text: str, rows: list[list[str]]) -> int:
    for row in rows:
        number = _number(row[2])
        if row[0] == text and number is not None:
            return number
    number = _number(text)
    if number is None:
        raise InvalidArgument(f"unable to find group {text}: no matching entries in group file")
    return _identifier(number, text)
