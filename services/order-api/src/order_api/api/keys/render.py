"""Converts API keys to protobuf."""

from order_api.domain.api_keys import ApiKeyInfo
from shop_common.identity.api_key import ApiKey
from shop_common.timestamps import to_proto, to_proto_or_none
from shop_protos.access.v1 import keys_pb2 as pb


def key(info: ApiKeyInfo) -> pb.ApiKey:
    return pb.ApiKey(
        id=info.id,
        name=info.name,
        permissions=sorted(info.permissions),
        created_at=to_proto(info.created_at),
        expires_at=to_proto_or_none(info.expires_at),
        revoked_at=to_proto_or_none(info.revoked_at),
        last_used_at=to_proto_or_none(info.last_used_at),
    )


def digest(value: ApiKey) -> pb.ApiKeyDigest:
    return pb.ApiKeyDigest(
        id=value.id,
        sha256=value.digest,
        tenant=value.tenant,
        permissions=sorted(value.permissions),
        expires_at=to_proto_or_none(value.expires_at),
    )
