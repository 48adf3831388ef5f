"""The realm of examples/keycloak, with users, and with clients that get tokens without a browser."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from devstack.servers.keycloak import Keycloak

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "keycloak" / "shop-realm.json"
REALM = "shop"
AUDIENCE = "shop"

PASSWORD = "a-password"
CLIENT = "tests"
SHORT_LIVED = "tests-short-lived"
ANOTHER_AUDIENCE = "tests-of-another-application"

ALICE, BOB, STELLA, ADA = 11, 12, 13, 14
USERS: dict[str, dict[str, list[str]]] = {
    "alice": {"user_id": [str(ALICE)], "tenant": ["default"]},
    "bob": {"user_id": [str(BOB)], "tenant": ["default"]},
    "stella": {"user_id": [str(STELLA)], "tenant": ["default"]},
    "ada": {"user_id": [str(ADA)], "tenant": ["acme"]},
    "norman": {"user_id": ["21"]},
    "mallory": {"user_id": ["22"], "tenant": ["Not A Tenant"]},
    "nadia": {"tenant": ["default"]},
}
"""The attributes of each user."""

STAFF = ("stella", "ada")
"""The users with the role `staff`."""

_FAST_HASHES = "hashAlgorithm(pbkdf2-sha256) and hashIterations(1)"
"""By default, hashing the password takes most of the time of a request for a token."""


class Realm:
    """A realm that was made from the example, under any name."""

    def __init__(self, keycloak: Keycloak, name: str = REALM, users: Iterable[str] = USERS) -> None:
        """Create the realm with these users. Raises HTTPError if Keycloak refuses it."""
        self._keycloak = keycloak
        self._name = name
        self._priority = 100  # that of the first key
        content = json.loads(EXAMPLE.read_text()) | {"realm": name, "users": [_user(user) for user in users]}
        content["passwordPolicy"] = _FAST_HASHES
        content["clients"] += [
            _client(CLIENT),
            _client(SHORT_LIVED, attributes={"access.token.lifespan": "1"}),
            _client(ANOTHER_AUDIENCE, defaultClientScopes=["shopper"], protocolMappers=[_audience("another")]),
        ]
        keycloak.admin("POST", "", content)
        self._id = keycloak.admin("GET", f"/{name}")["id"]

    @property
    def issuer(self) -> str:
        return self._keycloak.issuer(self._name)

    def token(self, user: str, *scopes: str, client: str = CLIENT) -> str:
        """An access token of the token endpoint, for the user, with these scopes beside the client's default ones."""
        return self._keycloak.token(self._name, client, user, PASSWORD, *scopes)

    def rotate(self) -> None:
        """Sign with a new key from now on. Tokens that earlier keys signed stay valid."""
        self._priority += 1
        config = {"priority": [str(self._priority)], "algorithm": ["RS256"], "enabled": ["true"], "active": ["true"]}
        component = {
            "name": f"key-{self._priority}",
            "providerId": "rsa-generated",
            "providerType": "org.keycloak.keys.KeyProvider",
            "parentId": self._id,
            "config": config,
        }
        self._keycloak.admin("POST", f"/{self._name}/components", component)

    def revoke_key(self, key_id: str) -> None:
        """Remove the key with this id."""
        keys = self._keycloak.admin("GET", f"/{self._name}/keys")["keys"]
        (provider,) = (key["providerId"] for key in keys if key["kid"] == key_id)
        self._keycloak.admin("DELETE", f"/{self._name}/components/{provider}")


def _user(name: str) -> dict[str, Any]:
    return {
        "username": name,
        "enabled": True,
        "attributes": USERS[name],
        "realmRoles": ["staff"] if name in STAFF else [],
        "credentials": [{"type": "password", "value": PASSWORD}],
    }


def _client(name: str, **options: Any) -> dict[str, Any]:
    return {
        "clientId": name,
        "protocol": "openid-connect",
        "publicClient": True,
        "standardFlowEnabled": False,
        "directAccessGrantsEnabled": True,
        "defaultClientScopes": ["shop", "shopper"],
        "optionalClientScopes": ["staff"],
        **options,
    }


def _audience(name: str) -> dict[str, Any]:
    return {
        "name": "audience",
        "protocol": "openid-connect",
        "protocolMapper": "oidc-audience-mapper",
        "config": {"included.custom.audience": name, "access.token.claim": "true"},
    }
