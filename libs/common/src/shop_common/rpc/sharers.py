"""Finds out between which callers the threads of a server are shared, before a call has a thread.

A call is authenticated on its thread, because that may take long: a key set may have to be fetched. But a call is
queued for a thread, or refused, before that. So this module remembers which caller the credentials of earlier calls
belong to. It never decides what a caller may do.
"""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the stubs do not have it

from shop_common.batching.fair_queue import Sharer, sharer_of
from shop_common.identity.authenticator import AUTHORIZATION, SUBJECT, TENANT, has_token
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
        # The keys are hashes of credentials, so this holds no secrets. Python's hash has a random, secret key, so
        # nobody can make a token that has the hash of another one. Two tokens with the same hash would only share their
        # threads.
        self._known: dict[int, Sharer] = {}
        self._lock = threading.Lock()  # guards additions; a lookup is atomic

    def of_event(self, event: Any) -> Sharer:
        """Return the sharer of a call that grpcio has received."""
        headers = _credentials(event.invocation_metadata)
        certified = None
        if not has_token(headers):
            # The public method for this needs a ServicerContext, which exists only on the thread of the call.
            certified = spiffe_id(_decoded(cygrpc.auth_context(event.call)))
        known = self._known.get(_hash(headers, certified))
        return Unknown(certified) if known is None else known

    def learn(self, metadata: Iterable[tuple[str, str | bytes]], certified: str | None, caller: Caller) -> Sharer:
        """Remember the caller of an authenticated call, by its headers and the SPIFFE id in its certificate."""
        headers = _credentials(metadata)
        sharer = sharer_of(caller)
        credentials = _hash(headers, None if has_token(headers) else certified)
        with self._lock:
            if len(self._known) >= REMEMBERED_MAX:
                del self._known[next(iter(self._known))]  # the oldest
            self._known[credentials] = sharer
        return sharer


def _credentials(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[str, str | bytes]]:
    return [(key, value) for key, value in metadata if key in _HEADERS]


def _hash(headers: Iterable[tuple[str, str | bytes]], certified: str | None) -> int:
    return hash((*headers, certified))


def _decoded(auth_context: Mapping[bytes, Any] | None) -> dict[str, Any]:
    return {key.decode(): value for key, value in (auth_context or {}).items()}
