"""The names of tenants: organizations that share one installation and never see each other's data."""

import re

DEFAULT = "default"
"""The tenant of all data if identities are not checked, and of rows from before tenants existed."""

_NAME = re.compile(r"[a-z0-9_-]{1,64}")


def is_valid(name: object) -> bool:
    """Return whether the value is the name of a tenant: 1 to 64 characters of a-z 0-9 _ -."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None
