"""Registers some methods of a service, without a servicer class, which must have all methods."""

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

Method = Callable[[Any, grpc.ServicerContext], Any]


def add_methods(service: ServiceDescriptor, methods: Mapping[str, Method], server: grpc.Server) -> None:
    """Do what the generated `add_…Servicer_to_server` does, but only for these methods."""
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            method,
            request_deserializer=GetMessageClass(service.methods_by_name[name].input_type).FromString,
            response_serializer=GetMessageClass(service.methods_by_name[name].output_type).SerializeToString,
        )
        for name, method in methods.items()
    }
    server.add_registered_method_handlers(service.full_name, handlers)
