"""Starts inventory-api: reads the settings, wires the parts, and serves until a signal comes."""

import argparse
import sys
from collections.abc import Sequence

from inventory_api.api import consumer
from inventory_api.api.servicer import InventoryMaintenanceServicer, InventoryServicer
from inventory_api.api.spans import describe, describe_event
from inventory_api.api_keys import FetchedApiKeys
from inventory_api.migrations import SCHEMA
from inventory_api.operations.coalescing import Operations
from inventory_api.operations.held_reservations import HeldReservationsCollector
from inventory_api.settings import InventorySettings
from inventory_api.store import tables
from shop_common.db import schema
from shop_common.db.database import Database
from shop_common.db.schema import SchemaError
from shop_common.environment.settings import help_text, load
from shop_common.events.consumer import Consumer
from shop_common.events.redrive import Redriving
from shop_common.identity.api_key_set import ApiKeySet
from shop_common.identity.process_identity import Identity
from shop_common.process import lifecycle
from shop_common.rpc import tls
from shop_common.rpc.server import Server
from shop_common.telemetry import metrics, metrics_server, tracing
from shop_protos.inventory.v1 import inventory_pb2, inventory_pb2_grpc, maintenance_pb2, maintenance_pb2_grpc

PROCESS = "inventory-api"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process until a signal comes, or run its `migrate` command. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["migrate"]:
        return schema.main(argv[1:], SCHEMA, load(InventorySettings).database_url)
    parser = argparse.ArgumentParser(
        prog="python -m inventory_api",
        usage="%(prog)s [-h] [migrate [-h] [--reset]]",
        description="Stock and reservations over gRPC. `migrate` upgrades the database to the newest schema.",
        epilog=help_text(InventorySettings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    serve(load(InventorySettings))
    return 0


def serve(settings: InventorySettings) -> None:
    """Wire the parts and serve until a signal comes."""
    lifecycle.begin(PROCESS, settings)
    tracing.start(PROCESS, settings)
    metrics_server.start(settings)
    database = Database(settings.database_url)
    tracing.instrument(database.engine)

    audit_log = tables.audit_log if settings.has_audit_log else None
    operations = Operations(
        database,
        ttl_seconds=settings.reservation_ttl,
        on_fatal=lifecycle.fatal,
        audit_log=audit_log,
        redriving=Redriving(
            settings.kafka, consumer.TOPIC, database=database, outbox=tables.outbox, audit_log=audit_log
        ),
        withholding=settings.withholding_enabled,
    )
    fetched_keys, api_keys = None, None
    if settings.order_target is not None and settings.grants_path is not None:
        fetched_keys = FetchedApiKeys(settings.order_target, certificates=tls.client_certificates(settings))
        api_keys = ApiKeySet(fetched_keys.read)
    identity = Identity(settings, api_keys)
    server = Server(settings, identity.authenticator)
    identity.start(lambda ready: server.health.set_ready("identity", ready))
    try:
        SCHEMA.check_or_wait(
            database, set_ready=lambda ready: server.health.set_ready("schema", ready), on_fatal=lifecycle.fatal
        )
    except SchemaError as error:
        raise SystemExit(f"{PROCESS}: {error}") from None
    server.add(
        inventory_pb2.DESCRIPTOR.services_by_name["InventoryService"],
        inventory_pb2_grpc.add_InventoryServiceServicer_to_server,
        InventoryServicer(operations),
        describe=describe,
    )
    server.add(
        maintenance_pb2.DESCRIPTOR.services_by_name["InventoryMaintenanceService"],
        maintenance_pb2_grpc.add_InventoryMaintenanceServiceServicer_to_server,
        InventoryMaintenanceServicer(operations),
    )
    on_stop = [identity.stop, operations.close, database.close, tracing.shutdown]
    if api_keys is not None and fetched_keys is not None:
        api_keys.start(lambda ready: server.health.set_ready("api-keys", ready))
        on_stop[:0] = [api_keys.stop, fetched_keys.close]
    if settings.consumer_enabled:
        order_events = Consumer(
            database=database,
            kafka=settings.kafka,
            group=consumer.GROUP,
            topic=consumer.TOPIC,
            handlers=consumer.handlers(audit_log),
            describe=describe_event,
            weigh=consumer.weigh,
            outbox=tables.outbox,
            set_ready=lambda ready: server.health.set_ready("consumer", ready),
            on_fatal=lifecycle.fatal,
        )
        order_events.start()
        on_stop.insert(0, order_events.stop)
    if metrics.is_enabled():
        collector = HeldReservationsCollector(database)
        collector.start()
        on_stop.insert(0, collector.stop)
    lifecycle.serve(server, settings, on_stop=on_stop)
