"""Builds the authenticator of an API from its settings."""

from collections.abc import Callable

from shop_common.identity import grants
from shop_common.identity.api_key_set import ApiKeySet
from shop_common.identity.authenticator import Authenticator
from shop_common.identity.key_set import KeySet
from shop_common.identity.settings import IdentitySettings
from shop_common.identity.tokens import TokenVerifier


class Identity:
    """The authenticator of a process, and the thread that fetches the keys.

    `authenticator` is None if the process does not check identities.
    """

    def __init__(self, settings: IdentitySettings, api_keys: ApiKeySet | None) -> None:
        """Read the grants. Raises GrantsError."""
        self.authenticator: Authenticator | None = None
        self._keys: KeySet | None = None
        verifier = None
        if settings.grants_path is None:
            return
        if settings.oidc_issuer is not None:
            self._keys = KeySet(settings.oidc_issuer, jwks_url=settings.oidc_jwks_url)
            verifier = TokenVerifier(
                issuer=settings.oidc_issuer,
                audience=settings.oidc_audience or "",
                user_claim=settings.oidc_user_claim,
                tenant_claim=settings.oidc_tenant_claim,
                keys=self._keys,
            )
        self.authenticator = Authenticator(grants.read(settings.grants_path), verifier, api_keys)

    def start(self, set_ready: Callable[[bool], None]) -> None:
        """Start fetching the key set, if tokens are accepted. Calls `set_ready` with False until the first success."""
        if self._keys is not None:
            self._keys.start(set_ready)

    def stop(self) -> None:
        """Stop fetching keys."""
        if self._keys is not None:
            self._keys.stop()
