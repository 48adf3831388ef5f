"""Verifies the JWTs of users."""

import hashlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from shop_common.identity import tenant
from shop_common.identity.errors import TokenExpired, TokenInvalid
from shop_common.identity.key_set import ALGORITHMS, KeySet

REMEMBERED_MAX = 10_000
REMEMBERED_SECONDS = 60.0
CLOCK_SKEW_SECONDS = 10
TOKEN_CHARACTERS_MAX = 8_192
SUBJECT_CHARACTERS_MAX = 255


@dataclass(frozen=True, slots=True)
class Token:
    """The claims of a valid token that this system uses. `expires_at` is in seconds since the epoch."""

    subject: str
    scopes: frozenset[str]
    expires_at: float
    tenant: str = tenant.DEFAULT


@dataclass(frozen=True, slots=True)
class _Remembered:
    token: Token
    until: float
    generation: int


class TokenVerifier:
    """Verifies tokens of one issuer for one audience. Safe to share between threads.

    Verified tokens are cached by their SHA-256, because verifying a signature costs a hundred times as much as a
    lookup. An entry is valid for REMEMBERED_SECONDS at most, and ends earlier if the token expires or the keys of the
    issuer change.
    """

    def __init__(
        self, *, issuer: str, audience: str, user_claim: str, tenant_claim: str | None = None, keys: KeySet
    ) -> None:
        """`tenant_claim` is the claim with the name of the user's tenant; None if all users are of the default one."""
        self._issuer = issuer
        self._audience = audience
        self._user_claim = user_claim
        self._tenant_claim = tenant_claim
        self._keys = keys
        self._remembered: dict[bytes, _Remembered] = {}
        self._lock = threading.Lock()  # guards additions; a lookup is atomic

    def verify(self, token: str) -> Token:
        """Verify the token and return its claims. Raises TokenInvalid, TokenExpired, KeySetUnavailable."""
        if len(token) > TOKEN_CHARACTERS_MAX:
            raise TokenInvalid(f"the token has more than {TOKEN_CHARACTERS_MAX} characters")
        digest = hashlib.sha256(token.encode()).digest()
        now = time.time()
        known = self._remembered.get(digest)
        # Read the generation before the keys: if the keys change during the verification, the entry is invalid at once.
        generation = self._keys.generation
        if known is not None and now < known.until and known.generation == generation:
            return known.token
        verified = self._verify(token)
        self._remember(digest, _Remembered(verified, min(verified.expires_at, now + REMEMBERED_SECONDS), generation))
        return verified

    def _remember(self, digest: bytes, remembered: _Remembered) -> None:
        with self._lock:
            self._remembered.pop(digest, None)
            if len(self._remembered) >= REMEMBERED_MAX:
                del self._remembered[next(iter(self._remembered))]  # the oldest
            self._remembered[digest] = remembered

    def _verify(self, token: str) -> Token:
        try:
            header = jwt.get_unverified_header(token)
            key = self._keys.find(_key_id(header))
            if key is None:
                raise TokenInvalid("the token names a key that the issuer does not have")
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=sorted(ALGORITHMS),
                issuer=self._issuer,
                audience=self._audience,
                leeway=CLOCK_SKEW_SECONDS,
                options={"require": ["exp", "iss", "aud", self._user_claim], "verify_sub": False},
            )
        except jwt.ExpiredSignatureError:
            raise TokenExpired from None
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            # Do not include the text of the error: it may quote the token.
            raise TokenInvalid(f"the token cannot be accepted: {_WHY.get(type(error), 'it is malformed')}") from None
        return Token(self._subject(claims), _scopes(claims), float(claims["exp"]), self._tenant(claims))

    def _subject(self, claims: Mapping[str, Any]) -> str:
        value = claims[self._user_claim]
        subject = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
        if not 0 < len(subject) <= SUBJECT_CHARACTERS_MAX or not subject.isprintable():
            raise TokenInvalid(
                f"the token's claim {self._user_claim!r} must be 1 to {SUBJECT_CHARACTERS_MAX} printable characters"
            )
        return subject

    def _tenant(self, claims: Mapping[str, Any]) -> str:
        if self._tenant_claim is None:
            return tenant.DEFAULT
        # Never fall back to the default tenant: a user without a tenant would see another organization's data.
        name = claims.get(self._tenant_claim)
        if not tenant.is_valid(name):
            raise TokenInvalid(f"the token's claim {self._tenant_claim!r} must be the name of a tenant: {tenant.FORM}")
        return str(name)


_WHY: dict[type[Exception], str] = {
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidIssuerError: "it is of another issuer",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidAlgorithmError: "its algorithm is not allowed",
    jwt.MissingRequiredClaimError: "it lacks a required claim",
}


def _key_id(header: Mapping[str, Any]) -> str | None:
    key_id = header.get("kid")
    if key_id is not None and not isinstance(key_id, str):
        raise TokenInvalid("the token's key id must be text")
    return key_id


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """Return the scopes of a token from `scope` (RFC 8693) and `scp`. Each is a list or text separated by spaces."""
    scopes: set[str] = set()
    for name in ("scope", "scp"):
        value = claims.get(name)
        parts = value.split() if isinstance(value, str) else value if isinstance(value, list) else ()
        scopes.update(part for part in parts if isinstance(part, str))
    return frozenset(scopes)
