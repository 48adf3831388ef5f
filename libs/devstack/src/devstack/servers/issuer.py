"""A small OpenID provider on a loopback port, for development and tests: it publishes keys and issues tokens.

It authenticates nobody. Any code that has the `Issuer` object can issue any token.
"""

import json
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

AUDIENCE = "shop"
TOKEN_SECONDS = 3600
_DISCOVERY = "/.well-known/openid-configuration"
_KEYS = "/keys"


class Issuer:
    """An issuer of tokens, as a context manager: the server starts on entry and stops on exit.

    If `is_available` is False, the server responds with status 503. `fetches` counts the responses with keys.
    """

    def __init__(self, port: int = 0) -> None:
        self.is_available = True
        self.fetches = 0
        self._keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.key_id = self.rotate()

    @property
    def jwks_url(self) -> str:
        return self.url + _KEYS

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, name="issuer", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def rotate(self, *, keep: Iterable[str] = ()) -> str:
        """Sign with a new key from now on. Returns the new key's id.

        An earlier key is still published only if its id is in `keep`.
        """
        kept = {key_id: self._keys[key_id] for key_id in keep}
        self.key_id = uuid4().hex
        # Replace the keys in one assignment: a request must never see half of a rotation.
        self._keys = {**kept, self.key_id: ec.generate_private_key(ec.SECP256R1())}
        return self.key_id

    def token(
        self,
        subject: object,
        *scopes: str,
        seconds: float = TOKEN_SECONDS,
        audience: str = AUDIENCE,
        key_id: str | None = None,
        **claims: Any,
    ) -> str:
        """Return a token for the user, which expires in `seconds`.

        The current key signs the token, unless `key_id` names another key. `claims` are added to the claims of the
        token, and replace those of the same name.
        """
        now = time.time()
        content = {"iss": self.url, "aud": audience, "sub": str(subject), "scope": " ".join(scopes), "iat": now}
        named = self.key_id if key_id is None else key_id
        # If no key has this id, sign with an unknown key, as another issuer would.
        key = self._keys.get(named) or ec.generate_private_key(ec.SECP256R1())
        return jwt.encode(content | {"exp": now + seconds} | claims, key, algorithm="ES256", headers={"kid": named})

    def document(self, path: str) -> dict[str, Any] | None:
        """Return the document that the server sends for this path, or None if the server responds with 404."""
        if path == _DISCOVERY:
            return {"issuer": self.url, "jwks_uri": self.jwks_url}
        if path != _KEYS:
            return None
        self.fetches += 1
        return {"keys": [_public(key_id, key) for key_id, key in self._keys.items()]}


def _public(key_id: str, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    return {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": key_id, "use": "sig", "alg": "ES256"}


def _handler(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document = issuer.document(self.path) if issuer.is_available else None
            content = json.dumps(document).encode()
            self.send_response(503 if not issuer.is_available else 404 if document is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    return Handler
