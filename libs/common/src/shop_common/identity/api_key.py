"""API keys: their text, and what a process needs to check one.

The text is `shop_live_ID_SECRET`. Secret scanners can find it by its prefix. The secret has 256 random bits, so a plain
SHA-256 of the text protects it: a slow hash is needed only for passwords, which can be guessed.
"""

import hashlib
import re
import secrets
from base64 import b32encode
from dataclasses import dataclass
from datetime import datetime

PREFIX = "shop_live_"
ID_PATTERN = re.compile(r"[a-z2-7]{16}\Z")

_ID_BYTES = 10
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as processes know it. `digest` is the SHA-256 of its text. None for `expires_at` means never."""

    id: str
    digest: bytes
    tenant: str
    permissions: frozenset[str]
    expires_at: datetime | None


def new_text() -> tuple[str, str]:
    """Return the id and the text of a new key."""
    key_id = _base32(_ID_BYTES)
    return key_id, f"{PREFIX}{key_id}_{_base32(_SECRET_BYTES)}"


def id_in(text: str) -> str:
    """Return the part of the text where a valid key has its id."""
    return text.removeprefix(PREFIX).partition("_")[0]


def digest_of(text: str) -> bytes:
    """Return the SHA-256 of the text."""
    return hashlib.sha256(text.encode()).digest()


def _base32(size_bytes: int) -> str:
    return b32encode(secrets.token_bytes(size_bytes)).decode().rstrip("=").lower()
