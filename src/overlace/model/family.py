"""IPv4 or IPv6, by the text of an address.

Owns that one question. Must not judge whether the text is an address.
"""

from __future__ import annotations


def is_six(text: str) -> bool:
    """Whether an address or prefix is IPv6."""
    return ":" in text
