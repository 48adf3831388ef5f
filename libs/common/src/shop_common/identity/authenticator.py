"""Identifies the caller of a call by the call's headers and the certificate of its connection."""

from collections.abc import Iterable, Sequence

from shop_common.identity.caller import Caller
from shop_common.identity.errors import CredentialsMissing, TokenInvalid
from shop_common.identity.grants import Grants
from shop_common.identity.tokens import TokenVerifier

AUTHORIZATION = "authorization"
_SCHEME = "bearer"


class Authenticator:
    """Authenticates callers. Safe to share between threads."""

    def __init__(self, grants: Grants, tokens: TokenVerifier | None) -> None:
        self._grants = grants
        self._tokens = tokens

    def caller(self, metadata: Iterable[tuple[str, str | bytes]], spiffe_id: str | None) -> Caller:
        """Return the caller. `metadata` are the headers; `spiffe_id` is the id in the client's certificate, if any.

        If there is a token, the certificate is ignored: a gateway's certificate adds no permissions to its users.
        Raises CredentialsMissing, TokenInvalid, TokenExpired, KeySetUnavailable.
        """
        headers = [value for key, value in metadata if key == AUTHORIZATION]
        if headers:
            return self._user(headers)
        if spiffe_id is None:
            raise CredentialsMissing
        return Caller(spiffe_id, self._grants.of_workload(spiffe_id))

    def _user(self, headers: Sequence[str | bytes]) -> Caller:
        scheme, _, token = str(headers[0]).partition(" ")
        if len(headers) > 1 or scheme.lower() != _SCHEME or not token:
            raise TokenInvalid("the call must have one header `authorization: Bearer TOKEN`")
        if self._tokens is None:
            raise TokenInvalid("this server accepts no tokens: OIDC_ISSUER is not set")
        verified = self._tokens.verify(token)
        permissions = self._grants.of_scopes(verified.scopes)
        return Caller(f"user:{verified.subject}", permissions, verified.subject)
