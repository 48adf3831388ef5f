"""Runs our server with a gRPC method that does nothing, to measure the minimal cost of a call."""

from grpc import Server as GrpcServer
from grpc import ServicerContext

from benchmarks.handlers import Method, add_methods
from shop_common.environment.process_settings import ApiSettings, GrpcPort
from shop_common.environment.settings import load
from shop_common.process import lifecycle
from shop_common.rpc.server import Server
from shop_protos.inventory.v1 import inventory_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["InventoryService"]


class EchoSettings(ApiSettings):
    grpc_port: GrpcPort = 0


def reserve_stock(request: pb.ReserveStockRequest, _: ServicerContext) -> pb.ReserveStockResponse:
    """Return a reservation with the values of the request."""
    reservation = pb.Reservation(product_id=request.product_id, quantity=request.quantity, order_id=request.order_id)
    return pb.ReserveStockResponse(reservation=reservation)


def main() -> None:
    settings = load(EchoSettings)
    lifecycle.begin("echo", settings)
    server = Server(settings)
    methods: dict[str, Method] = {"ReserveStock": reserve_stock}
    server.add(_SERVICE, _add, methods)
    lifecycle.serve(server, settings)


def _add(methods: dict[str, Method], server: GrpcServer) -> None:
    add_methods(_SERVICE, methods, server)


if __name__ == "__main__":
    main()
