from shop_protos.inventory.v1.inventory_pb2 import (
    BatchReserveStockRequest,
    CheckStockRequest,
    OrderLines,
    ReserveStockRequest,
)
from shopctl import client
from shopctl.client import SERVICES


def test_it_knows_every_service_of_both_apis() -> None:
    assert {service.full_name for service in SERVICES} == {
        "shop.inventory.v1.InventoryService",
        "shop.inventory.v1.InventoryMaintenanceService",
        "shop.order.v1.OrderService",
        "shop.order.v1.OrderMaintenanceService",
        "shop.access.v1.ApiKeyService",
    }


def test_a_request_that_may_be_retried_has_an_id() -> None:
    request = ReserveStockRequest(product_id=1)

    sent = client._identified(request)

    assert sent.request_id
    assert sent.product_id == 1
    assert request == ReserveStockRequest(product_id=1)


def test_each_order_of_a_batch_has_an_id_of_its_own() -> None:
    sent = client._identified(
        BatchReserveStockRequest(orders=[OrderLines(), OrderLines(request_id="mine"), OrderLines()])
    )

    ids = [order.request_id for order in sent.orders]
    assert ids[1] == "mine"
    assert all(ids)
    assert len(set(ids)) == 3


def test_a_request_that_knows_no_id_is_sent_as_it_is() -> None:
    request = CheckStockRequest(product_id=1, required_quantity=2)

    assert client._identified(request) == request
