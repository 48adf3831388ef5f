"""Ask grpc.health.v1 of every process, in containers of every replica, whether it is ready for calls and lives.

A process that lives but is not ready waits for something: its database, the broker, or the end of its start.
Exit code 0 only when every process is ready and alive.
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
    """What a process says of itself: SERVING, NOT_SERVING, or the status of the failed call."""

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
        help="a process to ask, may be repeated (default: those of ./task dev, else of the containers)",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Raises CommandFailed when one does not serve."""
    found = ask(dict(options.process)) if options.process else of_system()
    if options.json:
        print_json({"serving": all(one.serves for one in found), "processes": [asdict(one) for one in found]})
    else:
        rows = [(one.name, one.address, coloured(one.ready), coloured(one.alive)) for one in found]
        print_table("health", ["process", whole("address"), "ready", "alive"], rows)
    if unwell := [one.name for one in found if not one.serves]:
        raise CommandFailed(f"{' and '.join(unwell)} {'do' if len(unwell) > 1 else 'does'} not serve")
    return 0


def ask(addresses: dict[str, str]) -> list[Health]:
    """The health of each, asked at the same time."""
    with ThreadPoolExecutor(max(1, 2 * len(addresses))) as pool:
        ready = pool.map(grpc_health.health, addresses.values())
        alive = pool.map(lambda address: grpc_health.health(address, LIVENESS), addresses.values())
        return [Health(*said) for said in zip(addresses, addresses.values(), ready, alive, strict=True)]


def of_system() -> list[Health]:
    """The health of every process of what runs here. Raises NotRunning."""
    found = target.system()
    if isinstance(found, RunFile):
        said = ask({name: endpoint.health for name, endpoint in found.processes.items()})
        return [replace(one, address=found.processes[one.name].address) for one in said]
    with ThreadPoolExecutor(max(1, len(found.processes))) as pool:
        return list(pool.map(_of_container, found.processes))


def coloured(said: str) -> Text:
    """SERVING in green, all else in red."""
    return Text(said, "green" if said == SERVING else "bold red")


def _of_container(one: Container) -> Health:
    ready = one.health()
    # Who is ready lives: that saves starting a second probe.
    return Health(one.name, one.service, ready, ready if ready == SERVING else one.health(LIVENESS))


def _named_address(text: str) -> tuple[str, str]:
    name, equals, address = text.partition("=")
    if not (name and equals and address):
        raise argparse.ArgumentTypeError("must be NAME=HOST:PORT")
    return name, address
