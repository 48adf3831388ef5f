"""A gRPC method that does nothing, in the server that all processes here use: what any call costs at least."""

from grpc import Server, ServicerContext

from benchmarks.handlers import Method, add_methods
from shop.inventory.v1 import inventory_pb2 as pb
from shop_common import grpc_server, lifecycle
from shop_common.settings import ApiSettings, GrpcPort, load

_SERVICE = pb.DESCRIPTOR.services_by_name["InventoryService"]


class EchoSettings(ApiSettings):
    grpc_port: GrpcPort = 0


def reserve_stock(request: pb.ReserveStockRequest, _: ServicerContext) -> pb.ReserveStockResponse:
    """Reserve nothing."""
    reservation = pb.Reservation(product_id=request.product_id, quantity=request.quantity, order_id=request.order_id)
    return pb.ReserveStockResponse(reservation=reservation)


def main() -> None:
    settings = load(EchoSettings)
    lifecycle.begin("echo", settings)
    server = grpc_server.Server(settings)
    methods: dict[str, Method] = {"ReserveStock": reserve_stock}
    server.add(_SERVICE, _add, methods)
    lifecycle.serve(server, settings)


def _add(methods: dict[str, Method], server: Server) -> None:
    add_methods(_SERVICE, methods, server)


if __name__ == "__main__":
    main()
