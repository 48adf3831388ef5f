"""The public keys of the identity provider, fetched in the background.

While the provider is unavailable, the last fetched key set is used for up to a day. A token with an unknown key id
makes the process fetch the set at once, but at most every ten seconds. So a new key works immediately, and tokens with
random key ids do not cause many fetches. PyJWT's own PyJWKClient returns revoked keys (its issue 1051) and loses all
keys when a fetch fails (1162).
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import jwt

from shop_common.identity.errors import KeySetUnavailable
from shop_common.telemetry import logs, metrics

REFRESH_SECONDS = 300.0
RETRY_SECONDS = 10.0
"""The shortest time between two fetches that callers cause, and the time between attempts after a failure."""
KEPT_SECONDS = 24 * 3600.0
FETCH_SECONDS = 5.0
WAIT_SECONDS = 2.0
WAITING_MAX = 100
"""The number of calls that may wait for a fetch. Further calls fail with KEY_SET_UNAVAILABLE and may be retried."""

ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})
"""Only algorithms with a public key: a shared secret in the key set is ignored, and `none` is not allowed."""

_DOCUMENT_BYTES_MAX = 512 * 1024
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_log = logs.get(__name__)

_fetches = metrics.counter(
    __name__, "shop_key_set_fetches_total", "Fetches of the identity provider's key set, by outcome", "outcome"
)


class KeySet:
    """The keys of one issuer. Safe to share between threads.

    `generation` changes whenever the keys change.
    """

    def __init__(self, issuer: str, *, jwks_url: str | None) -> None:
        self.generation = 0
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._set_ready: Callable[[bool], None] = lambda _ready: None
        self._keys: Mapping[str | None, jwt.PyJWK] = {}
        self._fetched_at = self._attempted_at = float("-inf")
        self._changed = threading.Condition()
        self._is_wanted = True
        self._is_stopped = False
        self._waiting = threading.BoundedSemaphore(WAITING_MAX)
        self._thread = threading.Thread(target=self._run, name="key set", daemon=True)

    def start(self, set_ready: Callable[[bool], None]) -> None:
        """Start the thread that fetches the keys periodically. Reports not ready until one fetch has succeeded."""
        self._set_ready = set_ready
        set_ready(False)
        self._thread.start()

    def stop(self) -> None:
        """Stop fetching keys."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def find(self, key_id: str | None) -> jwt.PyJWK | None:
        """Return the key with this id, or None if the issuer has no such key.

        If the key is unknown and the last attempt is at least RETRY_SECONDS ago, waits up to WAIT_SECONDS for a fetch.
        Raises KeySetUnavailable if that fetch does not end in time, or if the key set is unknown or too old.
        """
        key = self._key(key_id)
        if key is not None and not self._is_stale():
            return key
        if self._may_fetch():
            self._wait_for_fetch()
            key = self._key(key_id)
        if self._is_stale():
            raise KeySetUnavailable
        return key

    def _key(self, key_id: str | None) -> jwt.PyJWK | None:
        # A token without a key id is accepted only if the issuer has a single key.
        if key_id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id)

    def _is_stale(self) -> bool:
        return time.monotonic() - self._fetched_at > KEPT_SECONDS

    def _may_fetch(self) -> bool:
        """Return whether a fetch is running or may start now."""
        return self._is_wanted or time.monotonic() - self._attempted_at >= RETRY_SECONDS

    def _wait_for_fetch(self) -> None:
        if not self._waiting.acquire(blocking=False):
            raise KeySetUnavailable
        try:
            with self._changed:
                self._is_wanted = True
                self._changed.notify_all()
                if not self._changed.wait_for(lambda: not self._is_wanted, WAIT_SECONDS):
                    raise KeySetUnavailable
        finally:
            self._waiting.release()

    def _run(self) -> None:
        while not self._is_stopped:
            succeeded = self._refresh()
            with self._changed:
                self._is_wanted = False
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda: self._is_wanted or self._is_stopped, REFRESH_SECONDS if succeeded else RETRY_SECONDS
                )

    def _refresh(self) -> bool:
        try:
            keys = _parsed(_document(self._jwks_url or self._discovered_url()))
        except (OSError, ValueError, HTTPException, RecursionError) as error:
            _fetches("failed").inc()
            _log.warning("the key set could not be fetched", issuer=self._issuer, error=str(error))
            self._attempted_at = time.monotonic()
            self._set_ready(not self._is_stale())
            return False
        _fetches("succeeded").inc()
        if _ids(keys) != _ids(self._keys):
            _log.info("the key set has changed", issuer=self._issuer, keys=len(keys))
            self._keys = keys
            self.generation += 1
        self._attempted_at = self._fetched_at = time.monotonic()
        self._set_ready(True)
        return True

    def _discovered_url(self) -> str:
        document = _document(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        if document.get("issuer") != self._issuer:
            raise ValueError(f"the discovery document is from the issuer {document.get('issuer')!r}")
        url = document.get("jwks_uri")
        if not isinstance(url, str) or not is_safe(url):
            raise ValueError("the discovery document has no jwks_uri with https")
        return url


def is_safe(url: str) -> bool:
    """Return whether keys may be fetched from this URL: over https, or from this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)


def _parsed(document: Mapping[str, Any]) -> dict[str | None, jwt.PyJWK]:
    """Return the usable keys by id. Raises ValueError if there is none."""
    keys: dict[str | None, jwt.PyJWK] = {}
    entries = document.get("keys")
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue  # a key type that PyJWT does not support; the other keys are usable
        if key.algorithm_name in ALGORITHMS:
            keys[key.key_id] = key
    if not keys:
        raise ValueError("the key set has no key for signatures")
    return keys


def _ids(keys: Mapping[str | None, jwt.PyJWK]) -> dict[str | None, str]:
    """Return the content of each key by its id. Comparing the ids alone would miss a key replaced under the same id."""
    return {key_id: json.dumps(key._jwk_data, sort_keys=True) for key_id, key in keys.items()}  # noqa: SLF001


class _SafeRedirects(HTTPRedirectHandler):
    def redirect_request(self, req: Request, *arguments: Any, **named: Any) -> Request | None:
        new = super().redirect_request(req, *arguments, **named)
        if new is not None and not is_safe(new.full_url):
            raise URLError("it redirects to a URL without https")
        return new


def _document(url: str) -> dict[str, Any]:
    """Fetch a JSON object. Raises OSError and ValueError."""
    # Use the proxy settings of this machine, except for an identity provider on this machine itself.
    proxies = ProxyHandler({}) if urlsplit(url).hostname in _LOOPBACK else ProxyHandler()
    opener = build_opener(proxies, _SafeRedirects())
    with opener.open(Request(url, headers={"Accept": "application/json"}), timeout=FETCH_SECONDS) as response:  # noqa: S310 - `is_safe` has checked the scheme
        content = response.read(_DOCUMENT_BYTES_MAX + 1)
    if len(content) > _DOCUMENT_BYTES_MAX:
        raise ValueError(f"the document at {url} has more than {_DOCUMENT_BYTES_MAX} bytes")
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError(f"the document at {url} is not a JSON object")  # noqa: TRY004 - as all faults of documents
    return document
