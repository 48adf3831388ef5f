"""A small process, which starts as a service does. The text of a request states what its only method does.

A test can run this file as a process, or import the same service and run it in its own process.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default
from google.protobuf.wrappers_pb2 import StringValue

from shop_common.environment import startup
from shop_common.environment.process_settings import ApiSettings, GrpcPort
from shop_common.environment.settings import load
from shop_common.identity.authenticator import Authenticator
from shop_common.process import lifecycle
from shop_common.rpc import tls
from shop_common.rpc.method import Describe
from shop_common.rpc.server import Server
from shop_common.telemetry import metrics_server, tracing
from shop_protos.access.v1 import access_pb2

SERVICE = "shop.echo.v1.EchoService"
METHOD = f"/{SERVICE}/Echo"

Behaviour = Callable[[StringValue, grpc.ServicerContext], StringValue]


class EchoSettings(ApiSettings):
    """The settings of the echo process."""

    grpc_port: GrpcPort = 0


def echo_service() -> ServiceDescriptor:
    """The descriptor of EchoService. It is written in Python because this package has no protos."""
    file = FileDescriptorProto(
        name="shop/echo/v1/echo.proto",
        package="shop.echo.v1",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto", "shop/access/v1/access.proto"],
    )
    value = ".google.protobuf.StringValue"
    method = file.service.add(name="EchoService").method.add(name="Echo", input_type=value, output_type=value)
    method.options.Extensions[access_pb2.access].permission = "inventory.read"
    pool = Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(SERVICE)


def add_echo(behave: Behaviour, server: grpc.Server) -> None:
    """What protoc would generate to add the service to a server."""
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(
            behave, request_deserializer=StringValue.FromString, response_serializer=StringValue.SerializeToString
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


def echo_stub(channel: grpc.Channel) -> "grpc.UnaryUnaryMultiCallable[StringValue, StringValue]":
    """What protoc would generate to call it."""
    return channel.unary_unary(METHOD, StringValue.SerializeToString, StringValue.FromString)


@dataclass(frozen=True)
class Echo:
    """A server in this process, and a channel to it."""

    server: Server
    channel: grpc.Channel

    def call(self, text: str = "", *, seconds: float = 10, traceparent: str | None = None) -> str:
        metadata = (("traceparent", traceparent),) if traceparent is not None else None
        return echo_stub(self.channel)(StringValue(value=text), timeout=seconds, metadata=metadata).value

    def begin(self, text: str = "", *, seconds: float = 10) -> "grpc._CallFuture[StringValue]":
        return echo_stub(self.channel).future(StringValue(value=text), timeout=seconds)


@contextmanager
def serving(
    behave: Behaviour,
    settings: EchoSettings | None = None,
    *,
    describe: Describe = lambda _message: {},
    authenticator: Authenticator | None = None,
) -> Iterator[Echo]:
    """The echo service with this behaviour, in this process."""
    server = Server(settings or EchoSettings(listen_host="127.0.0.1"), authenticator)
    server.add(echo_service(), add_echo, behave, describe=describe)
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield Echo(server, channel)
    finally:
        server.stop(0)


def main() -> None:
    startup.prepare()
    settings = load(EchoSettings)
    lifecycle.begin("echo", settings)
    tracing.start("echo", settings)
    metrics_server.start(settings)
    server = Server(settings)
    server.add(echo_service(), add_echo, _obey)
    on_stop = [lambda: print("flushed first", flush=True), _refuse_to_flush, tracing.shutdown]
    lifecycle.serve(server, settings, on_stop=on_stop if os.environ.get("ECHO_FLUSH") == "fails" else on_stop[::2])


def _obey(request: StringValue, context: grpc.ServicerContext) -> StringValue:
    order, _, argument = request.value.partition(" ")
    match order:
        case "whoami":
            return StringValue(value=str(tls.spiffe_id(context.auth_context())))
        case "certificate":
            presented: Any = context.auth_context()["x509_pem_cert"]
            (certificate,) = presented
            return StringValue(value=certificate.decode())
        case "pid":
            return StringValue(value=str(os.getpid()))
        case "sleep":
            print("asleep", flush=True)
            time.sleep(float(argument))
            print("awake", flush=True)
        case "fatal":
            error = RuntimeError("it failed")
            threading.Thread(target=lifecycle.fatal, args=("a flusher failed", error), daemon=True).start()
        case "fail":
            raise RuntimeError(argument)
    return request


def _refuse_to_flush() -> None:
    raise RuntimeError("nowhere to flush to")


if __name__ == "__main__":
    main()
