"""Finds out between which callers the threads of a server are shared, before a call has a thread.

A call is authenticated on its thread, because that may take long: a key set may have to be fetched. But a call is
queued for a thread, or refused, before that. So this module remembers which caller the credentials of earlier calls
belong to. It never decides what a caller may do.
"""

import hashlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the stubs do not have it

from shop_common.batching.fair_queue import Sharer, sharer_of
from shop_common.identity.authenticator import AUTHORIZATION, SUBJECT, TENANT
from shop_common.identity.caller import Caller
from shop_common.rpc.tls import spiffe_id

REMEMBERED_MAX = 10_000

_HEADERS = frozenset({AUTHORIZATION, SUBJECT, TENANT})


@dataclass(frozen=True, slots=True)
class Unknown:
    """The sharer of calls whose credentials are unknown: those of one certificate, or all calls with unknown tokens."""

    spiffe_id: str | None


class Sharers:
    """The callers of one server. Safe to share between threads."""

    def __init__(self) -> None:
        self._known: dict[bytes, Sharer] = {}
        """By the hash of the credentials."""
        self._lock = threading.Lock()  # guards additions; a lookup is atomic

    def of_event(self, event: Any) -> Sharer:
        """Return the sharer of a call that grpcio has received."""
        headers = _credentials(event.invocation_metadata)
        certified = None
        if not _has_token(headers):
            # The public method for this needs a ServicerContext, which exists only on the thread of the call.
            certified = spiffe_id(_decoded(cygrpc.auth_context(event.call)))
        return self._known.get(_digest(headers, certified), Unknown(certified))

    def learn(self, metadata: Iterable[tuple[str, str | bytes]], certified: str | None, caller: Caller) -> Sharer:
        """Remember the caller of an authenticated call, by its headers and the SPIFFE id in its certificate."""
        headers = _credentials(metadata)
        sharer = sharer_of(caller)
        digest = _digest(headers, None if _has_token(headers) else certified)
        with self._lock:
            if len(self._known) >= REMEMBERED_MAX:
                del self._known[next(iter(self._known))]  # the oldest
            self._known[digest] = sharer
        return sharer


def _credentials(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[str, str | bytes]]:
    return [(key, value) for key, value in metadata if key in _HEADERS]


def _has_token(headers: Iterable[tuple[str, str | bytes]]) -> bool:
    return any(key == AUTHORIZATION for key, _ in headers)


def _digest(headers: Iterable[tuple[str, str | bytes]], certified: str | None) -> bytes:
    return hashlib.sha256(repr((headers, certified)).encode()).digest()


def _decoded(auth_context: Mapping[bytes, Any] | None) -> dict[str, Any]:
    return {key.decode(): value for key, value in (auth_context or {}).items()}
