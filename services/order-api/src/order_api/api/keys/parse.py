"""Converts protobuf requests about API keys to commands. Every field is checked here and nowhere else."""

from datetime import datetime

from order_api.domain.api_keys import ApiKeyFilter, FetchApiKeys, NewApiKey, RevokeApiKey
from shop_common.api import paging
from shop_common.api.paging import PageRequest
from shop_common.api.valid import Fields
from shop_common.identity.api_key import ID_PATTERN
from shop_common.identity.caller import Caller
from shop_common.identity.rules import PERMISSIONS
from shop_protos.access.v1 import keys_pb2 as pb

PERMISSIONS_MAX = 50
USES_MAX = 1_000
LIFETIME_SECONDS_MIN = 1
LIFETIME_SECONDS_MAX = 10 * 366 * 24 * 3600


def new_key(request: pb.CreateApiKeyRequest, creator: Caller) -> NewApiKey:
    with Fields() as check:
        name = check.identifier("name", request.name)
        if check.size("permissions", request.permissions, 1, PERMISSIONS_MAX):
            for index, permission in enumerate(request.permissions):
                if permission not in PERMISSIONS:
                    check.violate(f"permissions[{index}]", "must be the name of a permission")
        expires_in = None
        if request.HasField("expires_in"):
            expires_in = check.duration("expires_in", request.expires_in, LIFETIME_SECONDS_MIN, LIFETIME_SECONDS_MAX)
        return NewApiKey(name, frozenset(request.permissions), expires_in, creator)


def keys_page(request: pb.ListApiKeysRequest, tenant: str) -> PageRequest[ApiKeyFilter]:
    with Fields() as check:
        return paging.page_request(
            check,
            "api-keys",
            ApiKeyFilter(tenant),
            page_size=request.page_size,
            page_token=request.page_token,
            position=(datetime, str),
        )


def revocation(request: pb.RevokeApiKeyRequest, caller: Caller) -> RevokeApiKey:
    with Fields() as check:
        if not ID_PATTERN.match(request.id):
            check.violate("id", "must be the id of an API key: 16 characters a-z and 2-7")
        return RevokeApiKey(request.id, caller)


def fetch(request: pb.FetchApiKeysRequest) -> FetchApiKeys:
    with Fields() as check:
        uses: dict[str, datetime] = {}
        if check.size("uses", request.uses, 0, USES_MAX):
            for index, use in enumerate(request.uses):
                at = check.at(f"uses[{index}]")
                used_at = at.instant("used_at", use.used_at)
                uses[at.identifier("id", use.id)] = used_at
        page = paging.page_request(
            check,
            "digests",
            None,
            page_size=request.page_size,
            page_token=request.page_token,
            position=(str,),
        )
        return FetchApiKeys(uses, page)
