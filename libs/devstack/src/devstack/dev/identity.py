"""The identities that may call the system of `./task dev --secure`: workloads with certificates, two users with tokens.

An issuer in this process signs the tokens. No API accepts them after this process has ended.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml

from devstack.certificates import OPERATOR, spiffe_id
from devstack.servers.issuer import AUDIENCE, Issuer
from shop_common.identity.rules import DELEGATE, PERMISSIONS
from shopctl.system import private_file, runfile
from shopctl.system.layout import INVENTORY_API, ORDER_API, REAPER

FOLDER = runfile.PATH.with_name("identity")
TOKEN_SECONDS = 24 * 3600

WORKLOADS: Mapping[str, list[str]] = {
    spiffe_id(INVENTORY_API): ["keys.read"],
    spiffe_id(ORDER_API): ["stock.reserve", DELEGATE],
    spiffe_id(REAPER): ["maintenance"],
    spiffe_id(OPERATOR): list(PERMISSIONS),
}
"""The permissions that the processes need, and those of an operator, for the grants file."""

_GRANTS = {
    "workloads": dict(WORKLOADS),
    "scopes": {
        "shopper": ["inventory.read", "orders.read", "orders.write"],
        "staff": ["inventory.read", "inventory.write", "orders.read", "orders.write", "orders.any"],
    },
}

USERS: Mapping[str, tuple[object, str]] = {"shopper": (1, "shopper"), "staff": ("staff", "staff")}
"""The subject and the scope of each user's token."""


@contextmanager
def provided(folder: Path = FOLDER) -> Iterator[dict[str, dict[str, str]]]:
    """Run the issuer for the block, and write the grants and the tokens. Yields the settings of each API."""
    with Issuer() as issuer:
        folder.mkdir(parents=True, exist_ok=True)
        grants = folder / "grants.yaml"
        grants.write_text(yaml.safe_dump(_GRANTS, sort_keys=False))
        for name, (subject, scope) in USERS.items():
            token = issuer.token(subject, scope, seconds=TOKEN_SECONDS)
            private_file.replace(token_file(name, folder), f"{token}\n".encode())
        settings = {
            "GRANTS_PATH": str(grants.absolute()),
            "OIDC_ISSUER": issuer.url,
            "OIDC_AUDIENCE": AUDIENCE,
        }
        yield {INVENTORY_API: settings, ORDER_API: settings}


def token_file(user: str, folder: Path = FOLDER) -> Path:
    """Return the path of the file with the token of one of USERS."""
    return folder / f"{user}.token"
