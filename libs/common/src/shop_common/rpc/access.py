"""Checks the callers of one method by its rule in the contract."""

from collections.abc import Hashable

import grpc
from google.protobuf.message import Message

from shop_common.identity.authenticator import Authenticator, has_token
from shop_common.identity.caller import Caller
from shop_common.identity.current import caller, set_caller
from shop_common.identity.rate import Buckets
from shop_common.identity.rules import DELEGATE, Rule
from shop_common.rpc.call_pool import CallPool
from shop_common.rpc.request_lines import lines_of
from shop_common.rpc.tls import spiffe_id


class Access:
    """Checks the calls of one method."""

    def __init__(self, rule: Rule, authenticator: Authenticator, pool: CallPool, buckets: Buckets) -> None:
        self._permission = rule.permission
        # The RPC checks the entries of a list itself, so that it can refuse single entries.
        self._own_user_field = "" if "." in rule.own_user_field else rule.own_user_field
        self._authenticator = authenticator
        self._pool = pool
        self._buckets = buckets

    def check_caller(self, context: grpc.ServicerContext) -> None:
        """Authenticate the caller, and check its permission and rate. Reads only the headers, not the message.

        Stores the caller, so that `caller()` returns it. Raises Unauthenticated, PermissionDenied, RateLimited, and
        Unavailable if the credentials cannot be checked.
        """
        metadata = context.invocation_metadata()
        # With a token, the certificate does not matter. Reading it costs as much as finding the caller of the token.
        certified = None if has_token(metadata) else spiffe_id(context.auth_context())
        found = self._authenticator.caller(metadata, certified)
        if self._permission:
            found.require(self._permission)
        self._pool.identify(metadata, certified, found)
        set_caller(found)
        if found.rate is not None:
            self._buckets.check(_bucket(found), found.rate)

    def check_request(self, request: Message) -> None:
        """Check that the caller may act for the user in the request, if it has one, and charge the caller its lines.

        Raises PermissionDenied, RateLimited.
        """
        found = caller()
        if self._own_user_field and (user_id := getattr(request, self._own_user_field)):
            found.require_user(user_id)
        if found.rate is not None:
            # Check again: other calls of this caller may have emptied the bucket while the message was received.
            self._buckets.take(_bucket(found), found.rate, lines_of(request))


def _bucket(found: Caller) -> Hashable:
    # The limit of a delegate applies to all its calls together, whichever users it acts for.
    return found.name if DELEGATE in found.permissions else (found.tenant, found.name)
