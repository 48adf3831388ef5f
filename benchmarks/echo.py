"""A gRPC method that does nothing, in the server that all processes here use: what any call costs at least."""

import sys

from grpc import ServicerContext
from shop.inventory.v1 import inventory_pb2 as pb
from shop.inventory.v1 import inventory_pb2_grpc
from shop_common import lifecycle
from shop_common.grpc_server import Server
from shop_common.settings import ApiSettings, GrpcPort, load


class EchoSettings(ApiSettings):
    grpc_port: GrpcPort = 0


class EchoServicer(inventory_pb2_grpc.InventoryServiceServicer):
    """ReserveStock that reserves nothing."""

    def ReserveStock(self, request: pb.ReserveStockRequest, context: ServicerContext) -> pb.ReserveStockResponse:
        return pb.ReserveStockResponse(
            reservation=pb.Reservation(
                product_id=request.product_id, quantity=request.quantity, order_id=request.order_id
            )
        )


def main() -> None:
    settings = load(EchoSettings)
    lifecycle.begin("echo", settings)
    server = Server(settings)
    server.add(
        pb.DESCRIPTOR.services_by_name["InventoryService"],
        inventory_pb2_grpc.add_InventoryServiceServicer_to_server,
        EchoServicer(),
    )
    lifecycle.serve(server, settings)


if __name__ == "__main__":
    sys.exit(main())
