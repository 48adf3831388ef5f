"""The composition root of order-api."""

import argparse
import sys
from collections.abc import Sequence

from order_api.api import consumer
from order_api.api.keys.servicer import ApiKeyServicer
from order_api.api.servicer import OrderMaintenanceServicer, OrderServicer
from order_api.api.spans import describe, describe_event
from order_api.inventory import Inventory
from order_api.migrations import SCHEMA
from order_api.operations.api_keys import ApiKeyOperations, StoredApiKeys
from order_api.operations.coalescing import Operations
from order_api.settings import OrderSettings
from order_api.store import tables
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
from shop_common.telemetry import metrics_server, tracing
from shop_protos.access.v1 import keys_pb2, keys_pb2_grpc
from shop_protos.order.v1 import maintenance_pb2, maintenance_pb2_grpc, order_pb2, order_pb2_grpc

PROCESS = "order-api"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process until SIGTERM or SIGINT, or run its `migrate` command. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["migrate"]:
        return schema.main(argv[1:], SCHEMA, load(OrderSettings).database_url)
    parser = argparse.ArgumentParser(
        prog="python -m order_api",
        usage="%(prog)s [-h] [migrate [-h] [--reset]]",
        description="Serves orders over gRPC. `migrate` upgrades the database to the newest schema.",
        epilog=help_text(OrderSettings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    serve(load(OrderSettings))
    return 0


def serve(settings: OrderSettings) -> None:
    """Create the parts of the process, and serve until SIGTERM or SIGINT."""
    lifecycle.begin(PROCESS, settings)
    tracing.start(PROCESS, settings)
    metrics_server.start(settings)
    database = Database(settings.database_url)
    tracing.instrument(database.engine)

    stock = Inventory(
        settings.inventory_target,
        call_seconds=settings.inventory_call_seconds,
        certificates=tls.client_certificates(settings),
    )
    audit_log = tables.audit_log if settings.has_audit_log else None
    operations = Operations(
        database,
        stock,
        on_fatal=lifecycle.fatal,
        audit_log=audit_log,
        redriving=Redriving(
            settings.kafka, consumer.TOPIC, database=database, outbox=tables.outbox, audit_log=audit_log
        ),
        partial_changes=settings.partial_changes_enabled,
    )
    stored_keys = StoredApiKeys(database)
    key_operations = ApiKeyOperations(database, stored_keys, on_fatal=lifecycle.fatal, audit_log=audit_log)
    api_keys = ApiKeySet(stored_keys.read)
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
        order_pb2.DESCRIPTOR.services_by_name["OrderService"],
        order_pb2_grpc.add_OrderServiceServicer_to_server,
        OrderServicer(operations),
        describe=describe,
    )
    server.add(
        maintenance_pb2.DESCRIPTOR.services_by_name["OrderMaintenanceService"],
        maintenance_pb2_grpc.add_OrderMaintenanceServiceServicer_to_server,
        OrderMaintenanceServicer(operations),
    )
    server.add(
        keys_pb2.DESCRIPTOR.services_by_name["ApiKeyService"],
        keys_pb2_grpc.add_ApiKeyServiceServicer_to_server,
        ApiKeyServicer(key_operations),
    )
    if identity.authenticator is not None:
        api_keys.start(lambda ready: server.health.set_ready("api-keys", ready))
    on_stop = [
        identity.stop, api_keys.stop, operations.close, key_operations.close,
        stock.close, database.close, tracing.shutdown,
    ]  # fmt: skip
    if settings.consumer_enabled:
        inventory_events = Consumer(
            database=database,
            kafka=settings.kafka,
            group=consumer.GROUP,
            topic=consumer.TOPIC,
            handlers=consumer.handlers(audit_log),
            describe=describe_event,
            outbox=tables.outbox,
            set_ready=lambda ready: server.health.set_ready("consumer", ready),
            on_fatal=lifecycle.fatal,
        )
        inventory_events.start()
        on_stop.insert(0, inventory_events.stop)
    lifecycle.serve(server, settings, on_stop=on_stop)
