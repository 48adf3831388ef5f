"""Check by grpc.health.v1 that every process, and every replica in containers, is ready and alive.

A process that is alive but not ready waits for its database, for the broker or for the end of its startup. The exit
code is 0 only if every process is ready and alive.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from rich.text import Text

from shopctl.system import grpc_health, target
from shopctl.system.compose import Container
from shopctl.system.runfile import RunFile
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import add_json, print_json, print_table, whole

SERVING = "SERVING"
LIVENESS = "liveness"


@dataclass(frozen=True)
class Health:
    """The health of a process: SERVING, NOT_SERVING, or the status of the failed call."""

    name: str
    address: str
    ready: str
    alive: str

    @property
    def serves(self) -> bool:
        return self.ready == self.alive == SERVING


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--process",
        action="append",
        type=_named_address,
        metavar="NAME=HOST:PORT",
        help="a process to check; may be repeated (default: those of ./task dev, else of the containers)",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the health of each process. Raises CommandFailed if a process is not ready or not alive."""
    found = check(dict(options.process)) if options.process else of_system()
    if options.json:
        print_json({"serving": all(one.serves for one in found), "processes": [asdict(one) for one in found]})
    else:
        rows = [(one.name, one.address, coloured(one.ready), coloured(one.alive)) for one in found]
        print_table("health", ["process", whole("address"), "ready", "alive"], rows)
    if failed := [one.name for one in found if not one.serves]:
        raise CommandFailed(f"{' and '.join(failed)} {'do' if len(failed) > 1 else 'does'} not serve")
    return 0


def check(addresses: dict[str, str]) -> list[Health]:
    """Return the health of each process, checked in parallel."""
    with ThreadPoolExecutor(max(1, 2 * len(addresses))) as pool:
        ready = pool.map(grpc_health.health, addresses.values())
        alive = pool.map(lambda address: grpc_health.health(address, LIVENESS), addresses.values())
        return [Health(*row) for row in zip(addresses, addresses.values(), ready, alive, strict=True)]


def of_system() -> list[Health]:
    """Return the health of every process of the running system. Raises NotRunning."""
    found = target.system()
    if isinstance(found, RunFile):
        checked = check({name: endpoint.health for name, endpoint in found.processes.items()})
        return [replace(one, address=found.processes[one.name].address) for one in checked]
    with ThreadPoolExecutor(max(1, len(found.processes))) as pool:
        return list(pool.map(_of_container, found.processes))


def coloured(status: str) -> Text:
    """Return SERVING in green, any other status in red."""
    return Text(status, "green" if status == SERVING else "bold red")


def _of_container(one: Container) -> Health:
    ready = one.health()
    # A ready process is alive, so a second probe is not needed.
    return Health(one.name, one.service, ready, ready if ready == SERVING else one.health(LIVENESS))


def _named_address(text: str) -> tuple[str, str]:
    name, equals, address = text.partition("=")
    if not (name and equals and address):
        raise argparse.ArgumentTypeError("must be NAME=HOST:PORT")
    return name, address
