"""A client of order-api that reads the API keys, and reports their last uses."""

from collections.abc import Iterator
from datetime import UTC

from shop_common.identity.api_key import ApiKey
from shop_common.identity.api_key_set import Uses
from shop_common.rpc.client import Client
from shop_common.rpc.tls import ReloadedCertificates
from shop_common.timestamps import to_proto
from shop_protos.access.v1 import keys_pb2 as pb
from shop_protos.access.v1 import keys_pb2_grpc

CALL_SECONDS = 5.0
PAGE_KEYS = 1_000
"""The most keys on a page, and also the most uses in a request."""


class FetchedApiKeys:
    """Reads the keys from order-api. It connects at the first call."""

    def __init__(self, target: str, *, certificates: ReloadedCertificates | None) -> None:
        self._client = Client(
            target,
            pb.DESCRIPTOR.services_by_name["ApiKeyService"],
            repeatable=(),  # ApiKeySet repeats a failed read
            unavailable_reason="ORDER_API_UNAVAILABLE",
            certificates=certificates,
        )
        self._stub = keys_pb2_grpc.ApiKeyServiceStub(self._client.channel)

    def read(self, uses: Uses) -> Iterator[ApiKey]:
        """Yield all keys, and report the uses. Raises ShopError."""
        # A used key is nearly always on one of the pages, so the requests for these pages have room for all uses.
        waiting = [pb.ApiKeyUse(id=key_id, used_at=to_proto(used_at)) for key_id, used_at in uses.items()]
        token = ""
        while True:
            page = self._client.call(
                self._stub.FetchApiKeys,
                pb.FetchApiKeysRequest(uses=waiting[:PAGE_KEYS], page_size=PAGE_KEYS, page_token=token),
                timeout_seconds=CALL_SECONDS,
            )
            for digest in page.digests:
                yield _key(digest)
            waiting, token = waiting[PAGE_KEYS:], page.next_page_token
            if not token:
                return

    def close(self) -> None:
        """Close the connections. Cancels a running call."""
        self._client.close()


def _key(digest: pb.ApiKeyDigest) -> ApiKey:
    expires_at = digest.expires_at.ToDatetime(UTC) if digest.HasField("expires_at") else None
    return ApiKey(digest.id, digest.sha256, digest.tenant, frozenset(digest.permissions), expires_at)
