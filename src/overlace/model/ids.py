"""Identifiers of swarm objects (containers take theirs from their task, agent/container.py).

Owns their alphabet and length. Randomness comes from the caller's side of the house only through `new_id`.
"""

from __future__ import annotations

import secrets

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
ID_LENGTH = 25


def base36(number: int, width: int) -> str:
    """`number` in base 36, left-padded with zeros to `width` digits."""
    digits = []
    while number:
        number, rest = divmod(number, 36)
        digits.append(_ALPHABET[rest])
    return "".join(reversed(digits)).rjust(width, "0")


def new_id() -> str:
    """A fresh 25-character base36 id (SwarmKit's form, 128 random bits)."""
    return base36(secrets.randbits(128), ID_LENGTH)
