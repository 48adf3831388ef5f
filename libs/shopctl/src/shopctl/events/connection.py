"""Connects commands to Kafka. An option chooses the address; the KAFKA_* settings choose TLS and login.

Without an address, the commands connect to the broker of the running system. The broker of the containers has TLS and a
login, which the commands then use.
"""

import argparse
from dataclasses import replace

from shop_common.environment.settings import WrongSettings, read
from shop_common.events.kafka_connection import KafkaConnection, SecurityProtocol
from shop_common.events.kafka_settings import KafkaSettings
from shopctl.system import target
from shopctl.system.compose import Containers
from shopctl.system.runfile import NotRunning

CHECK_SECONDS = 10.0


def add_broker(parser: argparse.ArgumentParser) -> None:
    """Add --bootstrap."""
    parser.add_argument(
        "--bootstrap",
        metavar="HOST:PORT",
        help="the Kafka broker (default: the broker of ./task dev if it runs, else that of the containers if they run, "
        "else KAFKA_BOOTSTRAP_SERVERS). The KAFKA_* settings choose TLS and login; the containers need none",
    )


def connection(options: argparse.Namespace) -> KafkaConnection:
    """Return the connection. With TLS or a login, check first that a broker accepts it.

    Raises NotRunning if no broker is known, WrongSettings if KAFKA_* settings are invalid, and KafkaUnreachable if no
    broker accepts the connection.
    """
    settings = read(KafkaSettings)
    if faults := list(settings.start_faults()):
        raise WrongSettings(faults)
    found = _connection(options, settings)
    if found.security_protocol is not SecurityProtocol.PLAINTEXT:
        # The errors of later requests do not contain the reason why there is no connection.
        found.check(CHECK_SECONDS)
    return found


def _connection(options: argparse.Namespace, settings: KafkaSettings) -> KafkaConnection:
    if options.bootstrap:
        return replace(settings.kafka, bootstrap_servers=str(options.bootstrap))
    try:
        system = target.system()
    except NotRunning:
        if "kafka_bootstrap_servers" in settings.model_fields_set:
            return settings.kafka
        raise
    if isinstance(system, Containers):
        return system.kafka
    return replace(settings.kafka, bootstrap_servers=system.bootstrap)
