"""Identifies the caller of a call by the call's headers and the certificate of its connection."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from urllib.parse import quote, unquote

from shop_common.identity import api_key, tenant
from shop_common.identity.api_key_set import ApiKeySet
from shop_common.identity.caller import Caller, user_name
from shop_common.identity.errors import CredentialsMissing, DelegationInvalid, TokenInvalid
from shop_common.identity.grants import Grants
from shop_common.identity.tokens import SUBJECT_CHARACTERS_MAX, TokenVerifier

AUTHORIZATION = "authorization"
TENANT = "shop-tenant"
SUBJECT = "shop-subject"
"""The headers with which a delegate names the tenant and the user for which it calls.

The user's name is percent-encoded, because a header contains only ASCII.
"""

_HEADERS = frozenset({AUTHORIZATION, TENANT, SUBJECT})
_SCHEME = "bearer"


class Authenticator:
    """Authenticates callers. Without `tokens` or `api_keys`, it refuses these. Safe to share between threads."""

    def __init__(self, grants: Grants, tokens: TokenVerifier | None, api_keys: ApiKeySet | None = None) -> None:
        self._grants = grants
        self._tokens = tokens
        self._api_keys = api_keys

    def use_grants(self, grants: Grants) -> None:
        """Use these grants for the calls from now on."""
        self._grants = grants

    def caller(self, metadata: Iterable[tuple[str, str | bytes]], spiffe_id: str | None) -> Caller:
        """Return the caller. `metadata` are the headers; `spiffe_id` is from `rpc.tls.spiffe_id`, if any.

        If there is a token, the certificate is ignored: a gateway's certificate adds no permissions to its users. If
        the headers name a tenant or a user, the caller acts for them. Raises CredentialsMissing, TokenInvalid,
        TokenExpired, KeySetUnavailable, ApiKeysUnavailable, PermissionMissing, DelegationInvalid.
        """
        headers: dict[str, list[str | bytes]] = {}
        for key, value in metadata:
            if key in _HEADERS:
                headers.setdefault(key, []).append(value)
        authenticated = self._authenticated(headers.get(AUTHORIZATION, ()), spiffe_id)
        if TENANT in headers or SUBJECT in headers:
            return _delegated(authenticated, headers)
        return authenticated

    def _authenticated(self, tokens: Sequence[str | bytes], spiffe_id: str | None) -> Caller:
        if tokens:
            return self._of_token(tokens)
        if spiffe_id is None:
            raise CredentialsMissing
        workload = self._grants.of_workload(spiffe_id)
        rate = self._grants.limits.workloads.get(spiffe_id)
        return Caller(spiffe_id, workload.permissions, tenant=workload.tenant, rate=rate)

    def _of_token(self, headers: Sequence[str | bytes]) -> Caller:
        scheme, _, token = str(headers[0]).partition(" ")
        if len(headers) > 1 or scheme.lower() != _SCHEME or not token:
            raise TokenInvalid("the call must have one header `authorization: Bearer TOKEN`")
        if token.startswith(api_key.PREFIX):
            if self._api_keys is None:
                raise TokenInvalid("this server accepts no API keys: ORDER_TARGET is not set")
            caller = self._api_keys.caller(token)
            rate = self._grants.limits.of_key(caller.name)
            return caller if rate is None else replace(caller, rate=rate)
        if self._tokens is None:
            raise TokenInvalid("this server accepts no tokens: OIDC_ISSUER is not set")
        verified = self._tokens.verify(token)
        permissions = self._grants.of_scopes(verified.scopes)
        rate = self._grants.limits.of_scopes(verified.scopes)
        return Caller(user_name(verified.subject), permissions, verified.subject, verified.tenant, rate)


def has_token(metadata: Iterable[tuple[str, str | bytes]]) -> bool:
    """Return whether the headers have a token or an API key, valid or not. If so, only this identifies the caller."""
    return any(key == AUTHORIZATION for key, _ in metadata)


def delegated(caller: Caller, named_tenant: str, subject: str) -> Caller:
    """Return the caller, acting for the user of the tenant.

    An empty tenant is the default one, and an empty subject is no user. Raises PermissionMissing if the caller may not
    act for others, and DelegationInvalid if a name is malformed.
    """
    acting = caller.acting_for(named_tenant or tenant.DEFAULT, subject or None)
    if not tenant.is_valid(acting.tenant):
        message = f"the named tenant must be {tenant.FORM}"
        raise DelegationInvalid(message, caller.name, caller.tenant)
    if len(subject) > SUBJECT_CHARACTERS_MAX or not subject.isprintable():
        message = f"the named user must be 1 to {SUBJECT_CHARACTERS_MAX} printable characters"
        raise DelegationInvalid(message, caller.name, caller.tenant)
    return acting


def delegation_headers(caller: Caller) -> tuple[tuple[str, str | bytes], ...]:
    """Return the headers that name the caller's tenant and user in a call that a delegate makes for the caller.

    They are empty for a caller of the default tenant that is no user. So a process whose own callers are not checked
    needs no permission to make calls.
    """
    of_tenant = ((TENANT, caller.tenant),) if caller.tenant != tenant.DEFAULT else ()
    of_subject = ((SUBJECT, quote(caller.subject)),) if caller.subject else ()
    return of_tenant + of_subject


def _delegated(caller: Caller, headers: Mapping[str, Sequence[str | bytes]]) -> Caller:
    names = []
    for header in (TENANT, SUBJECT):
        values = headers.get(header, ("",))
        if len(values) > 1:
            raise DelegationInvalid(f"the call must have one header {header}", caller.name, caller.tenant)
        names.append(unquote(str(values[0])))
    return delegated(caller, *names)
