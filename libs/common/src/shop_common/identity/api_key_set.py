"""The API keys that a process accepts, read again in the background every ten seconds.

So a call needs no database. Within ten seconds, a new key works and a revoked key no longer works. While the keys
cannot be read, the process uses those that it has read last, for up to a day.
"""

import hmac
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from shop_common.identity import api_key
from shop_common.identity.api_key import ApiKey
from shop_common.identity.caller import Caller
from shop_common.identity.errors import ApiKeysUnavailable, TokenExpired, TokenInvalid
from shop_common.telemetry import logs, metrics

REFRESH_SECONDS = 10.0
RETRY_SECONDS = 2.0
KEPT_SECONDS = 24 * 3600.0
LOG_SECONDS = 60.0
"""The shortest time between two log lines about failed reads."""

Uses = Mapping[str, datetime]
"""When each key was last accepted, by id."""

_NO_KEY = ApiKey("", secrets.token_bytes(32), "", frozenset(), None)
"""Compared with the text of a key that does not exist, so that the check takes the same time for each id."""

_log = logs.get(__name__)

_reads = metrics.counter(__name__, "shop_api_key_reads_total", "Reads of all API keys, by outcome", "outcome")


class ApiKeySet:
    """The keys of all tenants. Safe to share between threads.

    `read` returns all keys that are not revoked, and stores the uses since the last successful read. It may raise any
    exception. It runs in the thread of this object only.
    """

    def __init__(self, read: Callable[[Uses], Iterable[ApiKey]]) -> None:
        self._read = read
        self._keys: Mapping[str, tuple[ApiKey, Caller]] = {}
        self._read_at = self._logged_at = float("-inf")
        self._uses: dict[str, datetime] = {}
        self._lock = threading.Lock()  # guards `_uses`
        self._stopped = threading.Event()

    def start(self, set_ready: Callable[[bool], None]) -> None:
        """Start reading. Reports not ready until the first read has ended, also if it failed.

        So a process that starts in a rolling restart has the keys before it gets calls. But while the keys cannot be
        read, it serves the callers that use other credentials.
        """
        set_ready(False)
        threading.Thread(target=self._run, args=(set_ready,), name="API keys", daemon=True).start()

    def stop(self) -> None:
        """Stop reading. Does not wait for a running read: the process may stop because the database is stuck."""
        self._stopped.set()

    def caller(self, text: str) -> Caller:
        """Return the caller with this key. Raises TokenInvalid, TokenExpired, ApiKeysUnavailable.

        The error is the same for a key that is unknown, revoked or malformed.
        """
        key, caller = self._keys.get(api_key.id_in(text), (_NO_KEY, None))
        is_equal = hmac.compare_digest(api_key.digest_of(text), key.digest)
        if time.monotonic() - self._read_at > KEPT_SECONDS:
            raise ApiKeysUnavailable
        if not is_equal or caller is None:
            raise TokenInvalid("the API key is unknown or was revoked")
        now = datetime.now(UTC)
        if key.expires_at is not None and now >= key.expires_at:
            raise TokenExpired
        with self._lock:
            self._uses[key.id] = now
        return caller

    def _run(self, set_ready: Callable[[bool], None]) -> None:
        is_read = self._refresh()
        set_ready(True)
        while not self._stopped.wait(REFRESH_SECONDS if is_read else RETRY_SECONDS):
            is_read = self._refresh()

    def _refresh(self) -> bool:
        with self._lock:
            uses, self._uses = self._uses, {}
        started_at = time.monotonic()
        try:
            keys = {key.id: (key, _caller(key)) for key in self._read(uses)}
        except Exception as error:
            # After any failure, the keys that were read last stay in use, and the next read reports the uses.
            with self._lock:
                self._uses = {**uses, **self._uses}
            _reads("failed").inc()
            self._log_failure(error)
            return False
        _reads("succeeded").inc()
        self._keys, self._read_at = keys, started_at
        return True

    def _log_failure(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            known = "no keys are known yet" if not self._keys else "using the keys of the last read"
            _log.warning(f"the API keys could not be read; {known}", error=str(error))


def _caller(key: ApiKey) -> Caller:
    return Caller(f"key:{key.id}", key.permissions, tenant=key.tenant)
