"""Checks the callers of one method by its rule in the contract."""

import grpc
from google.protobuf.message import Message

from shop_common.identity.authenticator import Authenticator
from shop_common.identity.current import caller, set_caller
from shop_common.identity.rules import Rule
from shop_common.rpc.call_pool import CallPool
from shop_common.rpc.tls import spiffe_id


class Access:
    """Checks the calls of one method."""

    def __init__(self, rule: Rule, authenticator: Authenticator, pool: CallPool) -> None:
        self._permission = rule.permission
        self._own_user_field = rule.own_user_field
        self._authenticator = authenticator
        self._pool = pool

    def check_caller(self, context: grpc.ServicerContext) -> None:
        """Authenticate the caller and check its permission. Reads only the headers, not the message.

        Stores the caller, so that `caller()` returns it. Raises Unauthenticated, PermissionDenied, KeySetUnavailable.
        """
        metadata, certified = context.invocation_metadata(), spiffe_id(context.auth_context())
        found = self._authenticator.caller(metadata, certified)
        found.require(self._permission)
        self._pool.identify(metadata, certified, found)
        set_caller(found)

    def check_request(self, request: Message) -> None:
        """Check that the caller may act for the user in the request, if it has one. Raises PermissionDenied."""
        if self._own_user_field and (user_id := getattr(request, self._own_user_field)):
            caller().require_user(user_id)
