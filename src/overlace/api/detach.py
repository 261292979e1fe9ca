"""The keys that leave a terminal without ending what runs in it: Ctrl-P Ctrl-Q unless said otherwise.

Owns their grammar and finding them in what is typed (moby pkg/detach, moby/term ascii.go). Pure.
"""

from __future__ import annotations

from overlace.model.errors import InvalidArgument

DEFAULT = "ctrl-p,ctrl-q"
_SPECIAL = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` or `a,b` as bytes. Raises InvalidArgument in Docker's words."""
    keys = bytearray()
    for key in (text or DEFAULT).split(","):
        head, dash, letter = key.partition("-")
        if len(key) == 1 and key.isascii():
            keys.append(ord(key))
        elif head.lower() == "ctrl" and dash and len(letter) == 1 and letter.isascii() and letter.isalpha():
            keys.append(ord(letter.lower()) - ord("a") + 1)
        elif head.lower() == "ctrl" and dash and letter in _SPECIAL:
            keys.append(_SPECIAL[letter])
        else:
            raise InvalidArgument(f"Unknown character: '{key}' in detach keys '{text}'")
    return bytes(keys)


class DetachKeys:
    """What was typed, without the keys; some of them may wait for the next piece."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = 0  # how many of the keys were typed last

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """(what to hand on, whether the keys were typed: what comes after them is nobody's)."""
        passed = bytearray()
        for byte in typed:
            if byte == self._keys[self._held]:
                self._held += 1
                if self._held == len(self._keys):
                    return bytes(passed), True
                continue
            passed += self._keys[: self._held]
            self._held = 0
            if byte == self._keys[0]:
                self._held = 1
            else:
                passed.append(byte)
        return bytes(passed), False
