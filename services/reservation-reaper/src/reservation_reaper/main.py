"""The composition root of reservation-reaper."""

import argparse
from collections.abc import Sequence
from types import ModuleType

from google.protobuf.duration_pb2 import Duration

from reservation_reaper.reaper import Work
from reservation_reaper.schedule import Schedule
from reservation_reaper.settings import ReaperSettings
from reservation_reaper.triggers import Cron, Every, Trigger
from shop_common.environment.settings import help_text, load
from shop_common.process import lifecycle
from shop_common.rpc.client import Client
from shop_common.rpc.health import HealthServer
from shop_common.telemetry import metrics_server, tracing
from shop_protos.inventory.v1 import maintenance_pb2 as inventory_pb2
from shop_protos.inventory.v1.maintenance_pb2_grpc import InventoryMaintenanceServiceStub
from shop_protos.order.v1 import maintenance_pb2 as order_pb2
from shop_protos.order.v1.maintenance_pb2_grpc import OrderMaintenanceServiceStub

PROCESS = "reservation-reaper"

EXPIRY_SECONDS = 0.04
"""Of a batch of holds: longer than others, since inventory-api lets buyers come in between."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run until a signal comes; returns the exit code."""
    argparse.ArgumentParser(
        prog="python -m reservation_reaper",
        description="Asks the two APIs, again and again, to end what is due: holds, abandoned orders, old history.",
        epilog=help_text(ReaperSettings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(argv)
    serve(load(ReaperSettings))
    return 0


def serve(settings: ReaperSettings) -> None:
    """Wire the parts and serve."""
    lifecycle.begin(PROCESS, settings)
    tracing.start(PROCESS, settings)
    metrics_server.start(settings)
    clients = (
        _client(settings.inventory_target, inventory_pb2, "InventoryMaintenanceService"),
        _client(settings.order_target, order_pb2, "OrderMaintenanceService"),
    )
    works = [*_of_inventory(settings, clients[0]), *_of_orders(settings, clients[1])]

    server = HealthServer(settings.health_port, listen_host=settings.listen_host)
    server.health.set_ready("work", False)
    schedule = Schedule(works, set_ready=lambda ready: server.health.set_ready("work", ready), on_fatal=lifecycle.fatal)
    schedule.start()
    try:
        lifecycle.serve(
            server, settings, on_stop=[schedule.stop, *(client.close for client in clients), tracing.shutdown]
        )
    finally:
        # If the port was taken meanwhile: Python waits for the threads of a pool, which retry for as long as it takes.
        schedule.stop()


def _client(target: str, protos: ModuleType, name: str) -> Client:
    service = protos.DESCRIPTOR.services_by_name[name]
    # All of it is repeatable: what was done is not due any more.
    return Client(target, service, repeatable=service.methods_by_name, unavailable_reason="UNAVAILABLE")


def _of_inventory(settings: ReaperSettings, client: Client) -> list[Work]:
    api = InventoryMaintenanceServiceStub(client.channel)
    batch_max = settings.reap_batch_max

    def expire(most: int) -> int:
        request = inventory_pb2.ExpireReservationsRequest(max_count=most)
        return client.call(api.ExpireReservations, request, timeout_seconds=settings.call_seconds).expired_count

    def purge(most: int) -> int:
        request = inventory_pb2.PurgeHistoryRequest(older_than=_kept(settings), max_count=most)
        purged = client.call(api.PurgeHistory, request, timeout_seconds=settings.call_seconds)
        return max(purged.purged_keys_count, purged.purged_reservations_count)

    return [
        Work(
            "expire-reservations",
            expire,
            Every(settings.reap_interval_seconds),
            batch_max=batch_max,
            batch_seconds=EXPIRY_SECONDS,
        ),
        Work("purge-inventory", purge, _purges(settings), batch_max=batch_max),
    ]


def _of_orders(settings: ReaperSettings, client: Client) -> list[Work]:
    api = OrderMaintenanceServiceStub(client.channel)
    batch_max = settings.reap_batch_max

    def cancel(most: int) -> int:
        grace = Duration(seconds=settings.abandoned_grace_seconds)
        request = order_pb2.CancelAbandonedOrdersRequest(grace=grace, max_count=most)
        return client.call(api.CancelAbandonedOrders, request, timeout_seconds=settings.call_seconds).cancelled_count

    def purge(most: int) -> int:
        request = order_pb2.PurgeHistoryRequest(older_than=_kept(settings), max_count=most)
        return client.call(api.PurgeHistory, request, timeout_seconds=settings.call_seconds).purged_keys_count

    return [
        Work("cancel-abandoned-orders", cancel, Every(settings.reap_interval_seconds), batch_max=batch_max),
        Work("purge-orders", purge, _purges(settings), batch_max=batch_max),
    ]


def _purges(settings: ReaperSettings) -> Trigger:
    return Cron(settings.purge_cron) if settings.purge_cron else Every(settings.purge_interval_seconds)


def _kept(settings: ReaperSettings) -> Duration:
    return Duration(seconds=settings.history_kept_hours * 3600)
