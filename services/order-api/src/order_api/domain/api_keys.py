"""API keys: the commands about them, their values and their refusals."""

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from shop_common.api.paging import PageRequest
from shop_common.errors import NotFound, Refused
from shop_common.identity.api_key_set import Uses
from shop_common.identity.caller import Caller

TENANT_KEYS_MAX = 1_000
KEYS_MAX = 10_000
"""The largest number of keys that are neither expired nor revoked, of one tenant and in all. Each process of both APIs
keeps all keys in memory."""


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """Create an API key. `creator` is the caller: the key belongs to its tenant."""

    name: str
    permissions: frozenset[str]
    expires_in_seconds: float | None
    creator: Caller


@dataclass(frozen=True, slots=True)
class RevokeApiKey:
    """Revoke the API key with this id, if it belongs to the tenant of the caller."""

    id: str
    caller: Caller

    @property
    def tenant(self) -> str:
        return self.caller.tenant


@dataclass(frozen=True, slots=True)
class ApiKeyFilter:
    """A filter for the API keys of a tenant."""

    tenant: str


@dataclass(frozen=True, slots=True)
class FetchApiKeys:
    """Read a page of the digests with which processes check keys. `uses` are the uses that the process reports."""

    uses: Uses
    page: PageRequest[None]


@dataclass(frozen=True, slots=True)
class ApiKeyInfo:
    """An API key without its secret, for people."""

    id: str
    name: str
    permissions: frozenset[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class CreatedApiKey:
    """A new API key, with its text."""

    key: ApiKeyInfo
    text: str


class ApiKeyNotFound(NotFound):
    """The tenant has no API key with this id."""

    reason: ClassVar[str] = "API_KEY_NOT_FOUND"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"there is no API key {key_id}")
        self.key_id = key_id

    def metadata(self) -> dict[str, str]:
        return {"id": self.key_id}


class ApiKeysLimit(Refused):
    """The tenant, or all tenants together, have too many keys that are neither expired nor revoked."""

    reason: ClassVar[str] = "API_KEYS_LIMIT"

    def __init__(self, limit: int) -> None:
        super().__init__(f"there are already {limit} API keys that are neither expired nor revoked")
        self.limit = limit

    def metadata(self) -> dict[str, str]:
        return {"limit": str(self.limit)}
