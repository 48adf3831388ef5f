"""Builds the authenticator of an API from its settings."""

from collections.abc import Callable

from shop_common.identity.api_key_set import ApiKeySet
from shop_common.identity.authenticator import Authenticator
from shop_common.identity.grants_file import GrantsFile
from shop_common.identity.key_set import KeySet
from shop_common.identity.settings import IdentitySettings
from shop_common.identity.tokens import TokenVerifier


class Identity:
    """The authenticator of a process, and the threads that fetch the key set and read the grants again.

    `authenticator` is None if the process does not check identities.
    """

    def __init__(self, settings: IdentitySettings, api_keys: ApiKeySet | None) -> None:
        """Read the grants. Raises GrantsError, unless `settings.start_faults` has found no fault before."""
        self.authenticator: Authenticator | None = None
        self._grants: GrantsFile | None = None
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
        self._grants = GrantsFile(settings.grants_path)
        self.authenticator = Authenticator(self._grants.grants, verifier, api_keys)

    def start(self, set_ready: Callable[[bool], None]) -> None:
        """Start the threads. If tokens are accepted, calls `set_ready` with False until the key set is known."""
        if self._grants is not None and self.authenticator is not None:
            self._grants.start(self.authenticator.use_grants)
        if self._keys is not None:
            self._keys.start(set_ready)

    def stop(self) -> None:
        """Stop the threads."""
        if self._grants is not None:
            self._grants.stop()
        if self._keys is not None:
            self._keys.stop()
