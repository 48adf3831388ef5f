"""What our processes read, serve and call, taken from the processes themselves."""

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

from event_relay.settings import RelaySettings
from inventory_api.settings import InventorySettings
from order_api.settings import OrderSettings
from reservation_reaper.settings import ReaperSettings
from shop_common.environment.settings import CommonSettings, load
from shop_protos.inventory.v1 import inventory_pb2
from shop_protos.inventory.v1 import maintenance_pb2 as inventory_maintenance_pb2
from shop_protos.order.v1 import maintenance_pb2 as order_maintenance_pb2
from shop_protos.order.v1 import order_pb2
from shopctl.system.layout import INVENTORY_API, ORDER_API, REAPER, RELAY

_ADDRESS = re.compile(r"_(url|target|servers|endpoint)$")
_DEFAULT_PORTS = {"postgresql": 5432, "http": 80, "https": 443}


@dataclass(frozen=True)
class Process:
    """One deployable."""

    settings: type[CommonSettings]
    services: frozenset[str]
    """The full names of its services, for which its health speaks beside the empty name."""

    @property
    def names(self) -> frozenset[str]:
        """The settings that it has."""
        return frozenset(self.settings.model_fields) - {"worker_pipe"}


def _services(*files: FileDescriptor) -> frozenset[str]:
    return frozenset(service.full_name for file in files for service in file.services_by_name.values())


PROCESSES: Mapping[str, Process] = {
    INVENTORY_API: Process(
        InventorySettings, _services(inventory_pb2.DESCRIPTOR, inventory_maintenance_pb2.DESCRIPTOR)
    ),
    ORDER_API: Process(OrderSettings, _services(order_pb2.DESCRIPTOR, order_maintenance_pb2.DESCRIPTOR)),
    REAPER: Process(ReaperSettings, frozenset()),
    RELAY: Process(RelaySettings, frozenset()),
}


class SettingsRefused(Exception):
    """What the process says when it is started with these settings."""


def loaded(process: Process, environment: Mapping[str, str]) -> CommonSettings:
    """The settings as the process would have them. Raises SettingsRefused.

    Each X_FILE is replaced by a file here with some password in it: those of the cluster are not on this machine.
    """
    complaint = StringIO()
    with TemporaryDirectory() as folder:
        password = Path(folder, "password")
        password.write_text("p@ss/word\n")
        here = {name: str(password) if name.endswith("_FILE") else value for name, value in environment.items()}
        with mock.patch.dict(os.environ, here, clear=True), redirect_stderr(complaint):
            try:
                return load(process.settings)
            except SystemExit:
                raise SettingsRefused(complaint.getvalue()) from None


def setting_of(variable: str) -> str:
    """The setting that a variable gives, itself or by a file."""
    return variable.removesuffix("_FILE").lower()


def addressing(process: Process) -> Iterator[str]:
    """The settings that say where something is, and say `localhost` or the like unless they are set."""
    for name, field in process.settings.model_fields.items():
        if _ADDRESS.search(name) and field.default is not None:
            yield name


def addresses(environment: Mapping[str, str]) -> set[tuple[str, int]]:
    """Every host and port that an environment points at."""
    found = set()
    for variable, value in environment.items():
        if not _ADDRESS.search(setting_of(variable)) or variable.endswith("_FILE"):
            continue
        scheme, _, rest = value.rpartition("://")
        for address in re.split(r"[/?]", rest)[0].rpartition("@")[2].split(","):
            host, _, port = address.partition(":")
            found.add((host, int(port) if port else _DEFAULT_PORTS[scheme]))
    return found
