"""The settings, gRPC services and target addresses of our processes, taken from their code."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from google.protobuf.descriptor import FileDescriptor

from console.settings import ConsoleSettings
from event_relay.settings import RelaySettings
from inventory_api.settings import InventorySettings
from order_api.settings import OrderSettings
from reservation_reaper.settings import ReaperSettings
from shop_common.environment.process_settings import CommonSettings
from shop_common.environment.settings import load
from shop_protos.access.v1 import keys_pb2
from shop_protos.inventory.v1 import inventory_pb2
from shop_protos.inventory.v1 import maintenance_pb2 as inventory_maintenance_pb2
from shop_protos.order.v1 import maintenance_pb2 as order_maintenance_pb2
from shop_protos.order.v1 import order_pb2
from shopctl.system.layout import CONSOLE, INVENTORY_API, ORDER_API, REAPER, RELAY

_ADDRESS = re.compile(r"_(url|target|servers|endpoint|issuer)$|^processes$")
_WATCHED = "PROCESSES"
"""The setting of the console with two addresses for each process that it watches."""
_OWN = "PUBLIC_URL"
"""The address at which browsers reach the console; it does not connect to it."""
_DEFAULT_PORTS = {"postgresql": 5432, "http": 80, "https": 443}


@dataclass(frozen=True)
class Process:
    """One deployable."""

    settings: type[CommonSettings]
    services: frozenset[str]
    """The full names of its gRPC services. Its health service knows them, and the empty name."""

    @property
    def names(self) -> frozenset[str]:
        """The names of its settings, in lower case."""
        return frozenset(self.settings.model_fields) - {"worker_pipe"}


def _services(*files: FileDescriptor) -> frozenset[str]:
    return frozenset(service.full_name for file in files for service in file.services_by_name.values())


PROCESSES: Mapping[str, Process] = {
    INVENTORY_API: Process(
        InventorySettings, _services(inventory_pb2.DESCRIPTOR, inventory_maintenance_pb2.DESCRIPTOR)
    ),
    ORDER_API: Process(
        OrderSettings, _services(order_pb2.DESCRIPTOR, order_maintenance_pb2.DESCRIPTOR, keys_pb2.DESCRIPTOR)
    ),
    REAPER: Process(ReaperSettings, frozenset()),
    RELAY: Process(RelaySettings, frozenset()),
    CONSOLE: Process(ConsoleSettings, frozenset()),
}

REQUIRED = frozenset(PROCESSES) - {CONSOLE}
"""The processes that every overlay has."""


class SettingsRefused(Exception):
    """The process refuses these settings. The message is its output."""


def loaded(process: Process, environment: Mapping[str, str]) -> CommonSettings:
    """Load the settings as the process would. Raises SettingsRefused.

    Each X_FILE names a temporary file with a password instead: the files of the cluster are not on this machine.
    """
    errors = StringIO()
    with TemporaryDirectory() as folder:
        password = Path(folder, "password")
        password.write_text("p@ss/word\n")
        here = {name: str(password) if name.endswith("_FILE") else value for name, value in environment.items()}
        with mock.patch.dict(os.environ, here, clear=True), redirect_stderr(errors):
            try:
                return load(process.settings)
            except SystemExit:
                raise SettingsRefused(errors.getvalue()) from None


def setting_of(variable: str) -> str:
    """The setting of a variable X or X_FILE, in lower case."""
    return variable.removesuffix("_FILE").lower()


def address_settings(process: Process) -> Iterator[str]:
    """The settings that hold an address and have a default, such as `localhost`, which is wrong in a cluster.

    The console is an exception: without KAFKA_BOOTSTRAP_SERVERS it does not use the default, but has no broker.
    """
    for name, field in process.settings.model_fields.items():
        is_optional = process.settings is ConsoleSettings and name == "kafka_bootstrap_servers"
        if _ADDRESS.search(name) and field.default is not None and not is_optional:
            yield name


def addresses(environment: Mapping[str, str]) -> set[tuple[str, int]]:
    """(host, port) for every address in the environment."""
    found = set()
    for variable, value in environment.items():
        if not _ADDRESS.search(setting_of(variable)) or variable.endswith("_FILE") or variable == _OWN:
            continue
        if variable == _WATCHED:
            found |= {_host_and_port(one) for each in value.split(",") for one in each.partition("=")[2].split("/")}
            continue
        scheme, _, rest = value.rpartition("://")
        for address in re.split(r"[/?]", rest)[0].rpartition("@")[2].split(","):
            host, _, port = address.partition(":")
            found.add((host, int(port) if port else _DEFAULT_PORTS[scheme]))
    return found


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.partition(":")
    return host, int(port)
