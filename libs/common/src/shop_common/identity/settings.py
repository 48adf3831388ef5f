"""Settings for the authentication of callers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from shop_common.environment.settings import Settings
from shop_common.identity import grants
from shop_common.identity.grants import GrantsError
from shop_common.identity.key_set import is_safe


def _https(url: str) -> str:
    if not is_safe(url):
        raise ValueError("must be https://…, or http:// on this machine")
    return url


class IdentitySettings(Settings):
    """The settings with which an API identifies its callers. Without GRANTS_PATH it does not check identities."""

    grants_path: Path | None = Field(
        default=None,
        description="YAML file with the permissions of workloads and scopes; unset: every caller may do everything",
    )
    audit: bool | None = Field(
        default=None,
        description="write a row of the audit log for each change; unset: if GRANTS_PATH is set",
    )
    oidc_issuer: Annotated[str, AfterValidator(_https)] | None = Field(
        default=None, description="issuer of the users' tokens; its key set is found by OpenID Connect discovery"
    )
    oidc_audience: str | None = Field(default=None, description="audience for which tokens must be issued")
    oidc_jwks_url: Annotated[str, AfterValidator(_https)] | None = Field(
        default=None, description="URL of the issuer's key set; unset: found by OpenID Connect discovery"
    )
    oidc_tenant_claim: str | None = Field(
        default=None,
        description="claim of a token with the name of the user's tenant; unset: all users are of the tenant `default`",
        min_length=1,
    )
    oidc_user_claim: str = Field(default="sub", description="claim of a token with the user's id", min_length=1)

    @property
    def has_audit_log(self) -> bool:
        """Whether the process writes the audit log."""
        return self.grants_path is not None if self.audit is None else self.audit

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.oidc_issuer and not self.grants_path:
            yield "OIDC_ISSUER: needs GRANTS_PATH: without grants, no token would be checked"
        if self.oidc_issuer and not self.oidc_audience:
            yield "OIDC_AUDIENCE: is required with OIDC_ISSUER: otherwise any application's token would be accepted"
        for name in ("oidc_audience", "oidc_jwks_url", "oidc_tenant_claim"):
            if getattr(self, name) and not self.oidc_issuer:
                yield f"{name.upper()}: needs OIDC_ISSUER"

    def start_faults(self) -> Iterator[str]:
        yield from super().start_faults()
        if self.grants_path is not None:
            try:
                grants.read(self.grants_path)
            except GrantsError as error:
                yield f"GRANTS_PATH: {error}"

    def facts(self) -> Iterator[tuple[str, object]]:
        yield from super().facts()
        yield "identity", self.grants_path is not None
        yield "audit", self.has_audit_log
