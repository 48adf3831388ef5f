"""Checks the callers of one method by its rule in the contract."""

import grpc
from google.protobuf.message import Message

from shop_common.identity.authenticator import Authenticator
from shop_common.identity.rules import Rule
from shop_common.rpc.call import caller, set_caller
from shop_common.rpc.tls import spiffe_id


class Access:
    """The check of one method's calls."""

    def __init__(self, rule: Rule, authenticator: Authenticator) -> None:
        self._permission = rule.permission
        self._own_user_field = rule.own_user_field
        self._authenticator = authenticator

    def check_caller(self, context: grpc.ServicerContext) -> None:
        """Find out who calls; `caller()` returns it from now on. Needs the headers of the call only.

        Raises Unauthenticated, PermissionDenied, and KeySetUnavailable.
        """
        found = self._authenticator.caller(context.invocation_metadata(), spiffe_id(context.auth_context()))
        found.require(self._permission)
        set_caller(found)

    def check_request(self, request: Message) -> None:
        """Check the user whom the request names, if any. Raises PermissionDenied."""
        if self._own_user_field and (user_id := getattr(request, self._own_user_field)):
            caller().require_user(user_id)
