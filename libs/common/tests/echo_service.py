"""A whole small process, as a service's main builds one: health, and an echo whose behaviour its message asks for."""

import sys
import threading
import time
from collections.abc import Callable

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default
from google.protobuf.wrappers_pb2 import StringValue

from shop_common import lifecycle, telemetry
from shop_common.grpc_server import Server
from shop_common.settings import ApiSettings, GrpcPort, load

SERVICE = "shop.echo.v1.EchoService"


class EchoSettings(ApiSettings):
    """The settings of the echo process."""

    grpc_port: GrpcPort = 0


def service() -> ServiceDescriptor:
    """The descriptor of EchoService, made by hand: this package has no protos of its own."""
    pool = Default()
    file = FileDescriptorProto(
        name="shop/echo/v1/echo.proto",
        package="shop.echo.v1",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    value = ".google.protobuf.StringValue"
    file.service.add(name="EchoService").method.add(name="Echo", input_type=value, output_type=value)
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(SERVICE)


Echo = Callable[[StringValue, grpc.ServicerContext], StringValue]


def add_echo(echo: Echo, server: grpc.Server) -> None:
    """What protoc generates for a service, for this one."""
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(
            echo, request_deserializer=StringValue.FromString, response_serializer=StringValue.SerializeToString
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


def main() -> None:
    settings = load(EchoSettings)
    lifecycle.begin("echo", settings)
    telemetry.start("echo", settings)
    server = Server(settings)
    server.add(service(), add_echo, _behave)
    lifecycle.serve(server, settings, on_stop=[_say("flushed first"), _say("flushed second"), telemetry.shutdown])


def _behave(request: StringValue, context: grpc.ServicerContext) -> StringValue:
    word, _, argument = request.value.partition(" ")
    if word == "sleep":
        time.sleep(float(argument))
    elif word == "die":
        threading.Thread(target=lifecycle.die, args=("the flusher died", RuntimeError("why")), daemon=True).start()
    return request


def _say(what: str) -> Callable[[], None]:
    return lambda: print(what, flush=True)


if __name__ == "__main__":
    sys.exit(main())
