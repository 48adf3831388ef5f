"""Chooses the system that a command uses: the one that its options name, else that of `dev`, else the containers."""

import argparse
from pathlib import Path

from pydantic import Field

from shop_common.db.address import parse
from shop_common.environment.certificates import CertificateFiles
from shop_common.environment.process_settings import CallerSettings
from shop_common.environment.settings import Settings, read
from shop_common.identity import tenant
from shop_common.identity.authenticator import TENANT
from shop_common.rpc.tls import ReloadedCertificates, client_certificates
from shopctl.client import Shop
from shopctl.system import compose, runfile
from shopctl.system.compose import Containers
from shopctl.system.layout import INVENTORY_API, INVENTORY_PORT, ORDER_API, ORDERS_PORT, Databases
from shopctl.system.runfile import NotRunning, RunFile
from shopctl.terminal.failures import CommandFailed

DATA_FOLDER = runfile.PATH.with_name("data")
"""The default folder of the SQLite files of `dev`."""

_DEFAULT = "(default: that of ./task dev, else of the containers)"
_API_DEFAULT = "(default: that of ./task dev, else of the containers, else the setting {})"


class ApiAddresses(Settings):
    """The addresses of the APIs, for commands in a place where no system runs."""

    inventory_target: str = Field(default="", description="address of inventory-api, as HOST:PORT")
    order_target: str = Field(default="", description="address of order-api, as HOST:PORT")


def add_apis(parser: argparse.ArgumentParser) -> None:
    """Add --inventory, --orders and --tenant."""
    for option, api, setting in (
        ("--inventory", INVENTORY_API, "INVENTORY_TARGET"),
        ("--orders", ORDER_API, "ORDER_TARGET"),
    ):
        parser.add_argument(option, metavar="HOST:PORT", help=f"address of {api} {_API_DEFAULT.format(setting)}")
    parser.add_argument(
        "--tenant",
        type=_tenant,
        metavar="NAME",
        help="act for this tenant; needs the permission delegate, and APIs that check their callers",
    )


def add_databases(parser: argparse.ArgumentParser) -> None:
    """Add --inventory-url and --orders-url."""
    parser.add_argument("--inventory-url", metavar="URL", help=f"the inventory database {_DEFAULT}")
    parser.add_argument("--orders-url", metavar="URL", help=f"the orders database {_DEFAULT}")


def apis(options: argparse.Namespace) -> tuple[str, str]:
    """Return the addresses of inventory-api and order-api.

    Raises NotRunning if no option is set, no system runs, and no setting has an address. Raises WrongSettings.
    """
    if options.inventory or options.orders:
        return _with_defaults(options.inventory, options.orders)
    try:
        return system().apis
    except NotRunning:
        settings = read(ApiAddresses)
        if settings.inventory_target or settings.order_target:
            return _with_defaults(settings.inventory_target, settings.order_target)
        raise


def _with_defaults(inventory: str | None, orders: str | None) -> tuple[str, str]:
    return inventory or f"localhost:{INVENTORY_PORT}", orders or f"localhost:{ORDERS_PORT}"


def shop(options: argparse.Namespace) -> Shop:
    """Return a client of both APIs that acts for the tenant of --tenant.

    Raises NotRunning, WrongSettings and CertificateError.
    """
    headers = ((TENANT, options.tenant),) if options.tenant else ()
    return Shop.connect(*apis(options), certificates(options), headers=headers)


def certificates(options: argparse.Namespace) -> ReloadedCertificates | None:
    """Return the certificates for calls to the APIs, or None for plain text.

    The settings TLS_CA_PATH, TLS_CERT_PATH and TLS_KEY_PATH choose them. Without these settings and without address
    options, they are those of the running system, if one runs. Raises WrongSettings and CertificateError.
    """
    chosen = client_certificates(read(CallerSettings))
    if chosen is not None or options.inventory or options.orders:
        return chosen
    found = running()
    if not isinstance(found, RunFile) or found.certificates is None:
        return None
    folder = Path(found.certificates)
    files = CertificateFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt", "TLS_CA_PATH")
    return ReloadedCertificates(files)


def databases(options: argparse.Namespace) -> Databases:
    """Return both databases. The default databases of `dev` are known even while it is not running."""
    if options.inventory_url and options.orders_url:
        return Databases(options.inventory_url, options.orders_url)
    found = running()
    default = found.databases if found else Databases.in_folder(DATA_FOLDER)
    return Databases(options.inventory_url or default.inventory, options.orders_url or default.orders)


def require(database_url: str) -> None:
    """Raise CommandFailed if an SQLite file is missing: opening it would create it."""
    url = parse(database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise CommandFailed(f"its file {url.database} is missing; ./task db-init creates it")


def system() -> RunFile | Containers:
    """Return the running system. Raises NotRunning."""
    try:
        return runfile.read()
    except NotRunning as not_running:
        if containers := compose.running():
            return containers
        if compose.is_here():
            raise NotRunning(f"{not_running}, or in containers with ./task docker-run") from None
        raise


def _tenant(name: str) -> str:
    if not tenant.is_valid(name):
        raise argparse.ArgumentTypeError(f"must be {tenant.FORM}")
    return name


def running() -> RunFile | Containers | None:
    """Return the running system, or None."""
    try:
        return system()
    except NotRunning:
        return None
