"""Every RPC of the contract, and a client that calls any of them with any credential."""

from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from devstack.stack import Stack
from shop_common.identity.rules import Rule, rules_of
from shopctl.client import SERVICES
from testkit.calls import Outcome, outcome

METHODS = [method for service in SERVICES for method in service.methods]
"""Every RPC of every service. They come from the contract, so that a new one is covered without a new test."""

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.full_name))


def method_rule(method: MethodDescriptor) -> Rule:
    """The access rule of the RPC."""
    return rules_of(method.containing_service)[f"/{method.containing_service.full_name}/{method.name}"]


every_method_with_permission = pytest.mark.parametrize(
    "method", [method for method in METHODS if method_rule(method).permission], ids=lambda method: str(method.full_name)
)
"""Every RPC that needs a permission. The others let in every caller that is known."""


def request_of(method: MethodDescriptor, *, user: int = 0) -> Message:
    """An empty request; it names the user if the RPC has a field for one."""
    request = GetMessageClass(method.input_type)()
    if user and (field := method_rule(method).own_user_field):
        part: Any = request
        *lists, name = field.split(".")
        for each in lists:
            part = getattr(part, each).add()
        setattr(part, name, user)
    return request


class Apis:
    """A client of both APIs, in plain text unless it has credentials."""

    def __init__(self, stack: Stack, credentials: grpc.ChannelCredentials | None = None) -> None:
        addresses = {
            "shop.inventory.v1": stack.inventory_address,
            "shop.order.v1": stack.orders_address,
            "shop.access.v1": stack.orders_address,
        }
        self.channels = {
            package: grpc.insecure_channel(address)
            if credentials is None
            else grpc.secure_channel(address, credentials)
            for package, address in addresses.items()
        }

    def call(self, method: MethodDescriptor, request: Message, *authorization: str) -> Outcome:
        """The outcome of a call with these headers. Every refusal must have a reason."""
        metadata = [("authorization", value) for value in authorization]
        result = outcome(lambda: self.response(method, request, metadata))
        assert result.code is grpc.StatusCode.OK or result.reason, f"no ErrorInfo: {result}"
        return result

    def response(self, method: MethodDescriptor, request: Message, metadata: Sequence[tuple[str, str]]) -> Message:
        """The response to a call with this metadata. Raises grpc.RpcError."""
        rpc: Any = self.channels[method.containing_service.file.package].unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        response: Message = rpc(request, timeout=60, metadata=metadata)
        return response

    def close(self) -> None:
        for channel in self.channels.values():
            channel.close()
