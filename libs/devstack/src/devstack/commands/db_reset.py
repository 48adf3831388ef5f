"""Drop everything in both databases and bring them to the newest schema.

This deletes all items, reservations and orders, and the events that wait in an outbox. The command refuses to run
while ./task dev is running. It also refuses the databases of running containers: ./task docker-stop --volumes removes
those.
"""

import argparse
import sys

from rich.prompt import Confirm
from sqlalchemy.engine import make_url

from devstack.commands.db_init import migrate
from shopctl.system import target
from shopctl.system.compose import Containers
from shopctl.system.runfile import RunFile
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import error_console


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    target.add_databases(parser)


def run(options: argparse.Namespace) -> int:
    """Raises CommandFailed if the databases are in use or the user does not confirm."""
    match target.running():
        case RunFile():
            raise CommandFailed("dev is running; end it first, since its processes would lose their tables")
        case Containers() if not (options.inventory_url and options.orders_url):
            raise CommandFailed(
                "the containers are running; ./task docker-stop --volumes stops them and removes all data"
            )
    databases = target.databases(options)
    if not options.yes and not _confirmed(databases.inventory, databases.orders):
        raise CommandFailed("nothing was dropped")
    return migrate(databases.inventory, databases.orders, "--reset")


def _confirmed(*urls: str) -> bool:
    if not sys.stdin.isatty():
        raise CommandFailed("standard input is not a terminal; use --yes to drop everything")
    named = " and ".join(make_url(url).render_as_string(hide_password=True) for url in urls)
    return Confirm.ask(f"Drop everything in {named}?", console=error_console(), default=False)
