"""The composition root of reservation-reaper."""

import argparse
from collections.abc import Sequence
from types import ModuleType

from google.protobuf.duration_pb2 import Duration

from reservation_reaper.periodic_task import PeriodicTask
from reservation_reaper.reconciliation import Reconciliation
from reservation_reaper.schedule import Schedule
from reservation_reaper.settings import ReaperSettings
from reservation_reaper.stock_verification import StockVerification
from reservation_reaper.triggers import Cron, Every, Trigger
from shop_common.environment.settings import help_text, load
from shop_common.process import lifecycle
from shop_common.rpc import tls
from shop_common.rpc.client import Client
from shop_common.rpc.health import HealthServer
from shop_common.rpc.tls import ReloadedCertificates
from shop_common.telemetry import metrics_server, tracing
from shop_protos.inventory.v1 import maintenance_pb2 as inventory_pb2
from shop_protos.inventory.v1.maintenance_pb2_grpc import InventoryMaintenanceServiceStub
from shop_protos.order.v1 import maintenance_pb2 as order_pb2
from shop_protos.order.v1.maintenance_pb2_grpc import OrderMaintenanceServiceStub

PROCESS = "reservation-reaper"

EXPIRY_SECONDS = 0.04
"""Target duration of an expiry batch. It is longer than that of other batches, because inventory-api serves callers
between the turns of such a batch."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code."""
    argparse.ArgumentParser(
        prog="python -m reservation_reaper",
        description="Calls both APIs periodically: expires due reservations, cancels abandoned orders, purges history,"
        " verifies the stock, reconciles orders with it.",
        epilog=help_text(ReaperSettings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(argv)
    serve(load(ReaperSettings))
    return 0


def serve(settings: ReaperSettings) -> None:
    """Create the tasks and run them until SIGTERM or SIGINT."""
    lifecycle.begin(PROCESS, settings)
    tracing.start(PROCESS, settings)
    metrics_server.start(settings)
    certificates = tls.client_certificates(settings)
    clients = (
        _client(settings.inventory_target, inventory_pb2, "InventoryMaintenanceService", certificates),
        _client(settings.order_target, order_pb2, "OrderMaintenanceService", certificates),
    )
    tasks = [*_inventory_tasks(settings, clients[0]), *_order_tasks(settings, clients[1])]

    server = HealthServer(settings.health_port, listen_host=settings.listen_host)
    server.health.set_ready("tasks", False)
    schedule = Schedule(
        tasks, set_ready=lambda ready: server.health.set_ready("tasks", ready), on_fatal=lifecycle.fatal
    )
    schedule.start()
    try:
        lifecycle.serve(
            server, settings, on_stop=[schedule.stop, *(client.close for client in clients), tracing.shutdown]
        )
    finally:
        # `lifecycle.serve` exits if another process has taken the health port. Python then waits for the threads of the
        # pool, and these threads retry until they are stopped.
        schedule.stop()


def _client(target: str, protos: ModuleType, name: str, certificates: ReloadedCertificates | None) -> Client:
    service = protos.DESCRIPTOR.services_by_name[name]
    # Every method may be repeated: the rows that a first call has processed are no longer due.
    return Client(
        target,
        service,
        repeatable=service.methods_by_name,
        unavailable_reason="UNAVAILABLE",
        certificates=certificates,
    )


def _inventory_tasks(settings: ReaperSettings, client: Client) -> list[PeriodicTask]:
    api = InventoryMaintenanceServiceStub(client.channel)
    batch_max = settings.reap_batch_max

    def expire(limit: int) -> int:
        request = inventory_pb2.ExpireReservationsRequest(max_count=limit)
        return client.call(api.ExpireReservations, request, timeout_seconds=settings.call_seconds).expired_count

    def purge(limit: int) -> int:
        request = inventory_pb2.PurgeHistoryRequest(older_than=_history_age(settings), max_count=limit)
        purged = client.call(api.PurgeHistory, request, timeout_seconds=settings.call_seconds)
        return max(purged.purged_keys_count, purged.purged_reservations_count)

    def verify(request: inventory_pb2.VerifyStockRequest) -> inventory_pb2.VerifyStockResponse:
        return client.call(api.VerifyStock, request, timeout_seconds=settings.call_seconds)

    return [
        PeriodicTask(
            "expire-reservations",
            expire,
            Every(settings.reap_interval_seconds),
            batch_max=batch_max,
            batch_seconds=EXPIRY_SECONDS,
        ),
        PeriodicTask("purge-inventory", purge, _purge_trigger(settings), batch_max=batch_max),
        PeriodicTask(
            "verify-stock",
            StockVerification(verify).run_batch,
            Every(settings.verify_interval_seconds),
            batch_max=batch_max,
        ),
    ]


def _order_tasks(settings: ReaperSettings, client: Client) -> list[PeriodicTask]:
    api = OrderMaintenanceServiceStub(client.channel)
    batch_max = settings.reap_batch_max

    def cancel(limit: int) -> int:
        grace = Duration(seconds=settings.abandoned_grace_seconds)
        request = order_pb2.CancelAbandonedOrdersRequest(grace=grace, max_count=limit)
        ended = client.call(api.CancelAbandonedOrders, request, timeout_seconds=settings.call_seconds)
        return max(ended.cancelled_count, ended.ended_changes_count)

    def purge(limit: int) -> int:
        request = order_pb2.PurgeHistoryRequest(older_than=_history_age(settings), max_count=limit)
        purged = client.call(api.PurgeHistory, request, timeout_seconds=settings.call_seconds)
        return max(purged.purged_keys_count, purged.purged_api_keys_count)

    def reconcile(request: order_pb2.ReconcileOrdersRequest) -> order_pb2.ReconcileOrdersResponse:
        return client.call(api.ReconcileOrders, request, timeout_seconds=settings.call_seconds)

    return [
        PeriodicTask("cancel-abandoned-orders", cancel, Every(settings.reap_interval_seconds), batch_max=batch_max),
        PeriodicTask("purge-orders", purge, _purge_trigger(settings), batch_max=batch_max),
        PeriodicTask(
            "reconcile-orders",
            Reconciliation(reconcile).run_batch,
            Every(settings.verify_interval_seconds),
            batch_max=batch_max,
        ),
    ]


def _purge_trigger(settings: ReaperSettings) -> Trigger:
    return Cron(settings.purge_cron) if settings.purge_cron else Every(settings.purge_interval_seconds)


def _history_age(settings: ReaperSettings) -> Duration:
    return Duration(seconds=settings.history_kept_hours * 3600)
