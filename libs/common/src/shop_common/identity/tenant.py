"""The names of tenants: organizations that share one installation and never see each other's data."""

import re
from typing import Protocol

DEFAULT = "default"
"""The tenant of all data if identities are not checked, and of rows from before tenants existed."""

FORM = "1 to 64 characters of a-z 0-9 _ -"
"""Describes valid names, for error messages."""

_NAME = re.compile(r"[a-z0-9_-]{1,64}")


class OfTenant(Protocol):
    """A request, an event or a key that concerns the data of one tenant."""

    @property
    def tenant(self) -> str: ...


def is_valid(name: object) -> bool:
    """Return whether the value is the name of a tenant, see FORM."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def qualified(tenant: str, name: str) -> str:
    """Return the name as it is within the tenant: `TENANT/NAME`, and NAME alone in the default tenant.

    So names that are older than tenants stay as they were, for example keys of events, and ids derived from a name.
    """
    return name if tenant == DEFAULT else f"{tenant}/{name}"
