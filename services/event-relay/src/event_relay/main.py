"""The relay process: one loop for each outbox database, and a health service."""

import argparse
import os
import socket
import threading
from uuid import uuid4

from event_relay.metrics import Metrics
from event_relay.publisher import Publisher
from event_relay.relay import Relay
from event_relay.settings import RelaySettings
from shop_common.db.database import Database
from shop_common.environment.settings import help_text, load
from shop_common.process import lifecycle
from shop_common.rpc.health import Health, HealthServer
from shop_common.telemetry import metrics_server, tracing

READINESS_SECONDS = 0.2


def main() -> None:
    """Run until SIGTERM or SIGINT. Then finish the outstanding batches and release the leases."""
    argparse.ArgumentParser(
        prog="python -m event_relay",
        description="Ships every outbox row to Kafka, then deletes it.",
        epilog=help_text(RelaySettings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    settings = load(RelaySettings)
    lifecycle.begin("event-relay", settings)
    tracing.start("event-relay", settings)
    metrics_server.start(settings)

    server = HealthServer(settings.health_port, listen_host=settings.listen_host)
    server.health.set_ready("relay", False)
    # The name must be unique over time: a later process with the same name would renew the leases of this one.
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4()}"
    relays = [
        Relay(
            Database(url, connections_max=1),
            Publisher(settings.kafka, source=source),
            Metrics(name),
            name=name,
            owner=owner,
            lease_seconds=settings.lease_seconds,
            poll_seconds=settings.poll_seconds,
        )
        for name, source, url in (
            ("inventory", "/shop/inventory-api", settings.inventory_database_url),
            ("orders", "/shop/order-api", settings.orders_database_url),
        )
        if url is not None
    ]

    stop = threading.Event()
    threads = [
        threading.Thread(target=_run, args=(relay, stop), name=f"relay {relay.name}", daemon=True) for relay in relays
    ]
    threads.append(
        threading.Thread(target=_report_readiness, args=(server.health, relays, stop), name="readiness", daemon=True)
    )
    for thread in threads:
        thread.start()
    lifecycle.serve(server, settings, on_stop=[stop.set, *(thread.join for thread in threads), tracing.shutdown])


def _run(relay: Relay, stop: threading.Event) -> None:
    try:
        relay.run(stop)
    except BaseException as error:
        lifecycle.fatal(f"the relay of {relay.name} failed", error)


def _report_readiness(health: Health, relays: list[Relay], stop: threading.Event) -> None:
    # Poll readiness, because a loop that hangs in a call to a frozen database cannot report that it hangs.
    while not stop.wait(READINESS_SECONDS):
        health.set_ready("relay", any(relay.ready for relay in relays))
