"""Compares the cost of a call with and without security: `python -m benchmarks.secured`.

The secured side has mutual TLS between all processes, and users with tokens. It checks permissions and tenants, and
writes the audit log. The other side has none of it. Both run at the same time, each with its own databases on one
PostgreSQL. They are measured in turn in short rounds. The exit code is 1 if a call costs more than the limit with
statistical confidence.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from rich.console import Console

from benchmarks import command, pairs
from benchmarks.command import POSTGRESQL
from benchmarks.http2 import Credentials
from benchmarks.load import Generator
from benchmarks.pairs import CALLS, SAME_HASHES, Pairs
from benchmarks.scenarios import CREATE_ORDER, RESERVE_HOT
from benchmarks.subjects import ALONE, NO_BROKER, FilledOnce
from devstack import certificates
from devstack.servers.issuer import AUDIENCE, Issuer
from devstack.stack import Databases, Options, Ports, Stack
from shopctl.system.layout import ORDER_API

SCOPE = "shopper"
GRANTS = {
    "workloads": {certificates.spiffe_id(ORDER_API): ["stock.reserve", "delegate"]},
    "scopes": {SCOPE: ["stock.reserve", "orders.read", "orders.write", "orders.any"]},
}


class Side(FilledOnce):
    """Both APIs, with these options."""

    def __init__(
        self, name: str, databases: Databases, generator: Generator, pids: list[int], options: Options
    ) -> None:
        super().__init__(name, POSTGRESQL, databases, generator, pids)
        self.serve_by(Stack(databases, NO_BROKER, Ports.free(), options))
        for process in self.processes["server"]:
            process.env.update(SAME_HASHES)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the results. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.secured", description=__doc__)
    pairs.add_options(parser, limit=1.15)
    options = pairs.parsed(parser, argv)
    found = command.measured(lambda console: _measure(options, console))
    if found is None:
        return 1
    title = f"CPU per call, {CALLS} concurrent calls: open and secured, {options.rounds} rounds"
    pairs.show(found, ("open", "secured"), title, options.limit, command.output())
    return pairs.exit_code(found, options)


def _measure(options: argparse.Namespace, console: Console) -> Pairs:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        issuer = stack.enter_context(Issuer())
        server = command.synced_server(stack, console)
        generator = stack.enter_context(Generator())
        open_side = Side("open", Databases.on_server(server), generator, [server.pid], Options(environment=ALONE))
        secured, _ = secured_side(folder, issuer, Databases.on_server(server), generator, [server.pid])
        sides = [open_side, secured]
        for side in sides:
            stack.callback(side.stop)
            side.fill()
        measured = pairs.measure(options, sides, {RESERVE_HOT: sides, CREATE_ORDER: sides}, console)
        for side in sides:
            side.check()
    return measured


def secured_side(
    folder: Path, issuer: Issuer, databases: Databases, generator: Generator, pids: list[int]
) -> tuple[Side, Credentials]:
    """Return the side with security, and the credentials of a user."""
    grants = folder / "grants.yaml"
    grants.write_text(yaml.safe_dump(GRANTS))
    files = certificates.make(folder / "certificates")
    identity = {
        "GRANTS_PATH": str(grants),
        "OIDC_ISSUER": issuer.url,
        "OIDC_AUDIENCE": AUDIENCE,
        "OIDC_TENANT_CLAIM": "tenant",
    }
    side = Side("secured", databases, generator, pids, Options(environment=ALONE | identity, certificates=files))
    mine = files[certificates.OPERATOR]
    token = issuer.token(1, SCOPE, tenant="default")
    side.credentials = Credentials(str(mine.cert), str(mine.key), str(mine.ca), token)
    return side, side.credentials


if __name__ == "__main__":
    sys.exit(main())
