"""The errors with which a call is refused because of its caller.

Messages and metadata never contain any part of a credential.
"""

from shop_common.errors import PermissionDenied, Unauthenticated, Unavailable


class CredentialsMissing(Unauthenticated):
    """The call has neither a token nor a client certificate with an identity."""

    reason = "CREDENTIALS_MISSING"

    def __init__(self) -> None:
        super().__init__("the call has no credentials: send `authorization: Bearer TOKEN`, or use a client certificate")


class TokenInvalid(Unauthenticated):
    """The token is malformed, wrongly signed, not valid yet, or for another issuer or audience."""

    reason = "TOKEN_INVALID"


class TokenExpired(Unauthenticated):
    """The token was valid but has expired. The caller needs a new one."""

    reason = "TOKEN_EXPIRED"

    def __init__(self) -> None:
        super().__init__("the token has expired; get a new one")


class PermissionMissing(PermissionDenied):
    """The caller is authenticated but lacks the permission that the call needs."""

    reason = "PERMISSION_MISSING"

    def __init__(self, permission: str, caller: str = "", tenant: str = "") -> None:
        super().__init__(f"the call needs the permission {permission}, which the caller does not have", caller, tenant)
        self.permission = permission

    def metadata(self) -> dict[str, str]:
        return {"permission": self.permission}


class DelegationInvalid(PermissionDenied):
    """The call names a malformed tenant or user to act for."""

    reason = "DELEGATION_INVALID"


class KeySetUnavailable(Unavailable):
    """The keys of the identity provider are unknown, so the token can be neither accepted nor rejected. Retry."""

    reason = "KEY_SET_UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__("the keys of the identity provider could not be fetched; retry")


class ApiKeysUnavailable(Unavailable):
    """This process has not read the API keys yet, so the key can be neither accepted nor rejected. Retry."""

    reason = "API_KEYS_UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__("the API keys could not be read; retry")
