"""One method per RPC: parse, call the operation, render. Nothing is decided here."""

from grpc import ServicerContext

from order_api.api.keys import parse, render
from order_api.operations.api_keys import ApiKeyOperations
from shop_common.api import paging
from shop_common.identity.current import caller
from shop_common.rpc.call import deadline
from shop_protos.access.v1 import keys_pb2 as pb
from shop_protos.access.v1 import keys_pb2_grpc


class ApiKeyServicer(keys_pb2_grpc.ApiKeyServiceServicer):
    """Implements shop.access.v1.ApiKeyService."""

    def __init__(self, operations: ApiKeyOperations) -> None:
        self._operations = operations

    def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: ServicerContext) -> pb.CreateApiKeyResponse:
        created = self._operations.create(parse.new_key(request, caller()), deadline=deadline(context))
        return pb.CreateApiKeyResponse(api_key=render.key(created.key), key=created.text)

    def ListApiKeys(self, request: pb.ListApiKeysRequest, context: ServicerContext) -> pb.ListApiKeysResponse:
        command = parse.keys_page(request, caller().tenant)
        page = self._operations.list(command, deadline=deadline(context))
        return pb.ListApiKeysResponse(
            api_keys=[render.key(row) for row in page.rows], next_page_token=paging.next_token(page, command)
        )

    def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, context: ServicerContext) -> pb.RevokeApiKeyResponse:
        revoked = self._operations.revoke(parse.revocation(request, caller()), deadline=deadline(context))
        return pb.RevokeApiKeyResponse(api_key=render.key(revoked))

    def FetchApiKeys(self, request: pb.FetchApiKeysRequest, context: ServicerContext) -> pb.FetchApiKeysResponse:
        command = parse.fetch(request)
        page = self._operations.fetch(command, deadline=deadline(context))
        return pb.FetchApiKeysResponse(
            digests=[render.digest(row) for row in page.rows], next_page_token=paging.next_token(page, command.page)
        )
