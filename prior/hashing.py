"""Numbers that depend on a text alone, by which captions are dealt out: they stay when other captions come or go."""

from __future__ import annotations

import hashlib


def uniform(text: str) -> float:
    """A number in [0, 1): the first 48 bits of the text's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:6], "big") / 2**48
