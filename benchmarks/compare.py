"""Compares the cost of a call in the present tree and in another revision: `python -m benchmarks.compare REVISION`.

Both revisions run at the same time, each with its own environment and its own databases on one PostgreSQL. They are
measured in turn in short rounds, so that other load on the machine affects both alike. The exit code is 1 if a call
costs more than the limit with statistical confidence.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from rich.console import Console

from benchmarks import command, pairs, stock
from benchmarks.command import POSTGRESQL
from benchmarks.load import Generator
from benchmarks.pairs import CALLS, SAME_HASHES, Pairs
from benchmarks.revisions import PRESENT, Tree, checked_out
from benchmarks.scenarios import CREATE_ORDER, RESERVE_HOT, Scenario
from benchmarks.subjects import ALONE, NO_BROKER, Echo, FilledOnce, Services
from devstack.process import Process, ProcessEnded
from devstack.stack import Databases, Options, Ports, Stack

MIGRATE_SECONDS = 60

EMPTY = replace(RESERVE_HOT, name="empty", title="an empty call", reservations=0)
"""A call of the echo, which costs only what the server itself costs."""


class Side(FilledOnce):
    """Both APIs of one source tree."""

    def __init__(self, tree: Tree, databases: Databases, generator: Generator, database_pid: int) -> None:
        super().__init__(tree.name, POSTGRESQL, databases, generator, [database_pid])
        self._tree = tree
        stack = Stack(databases, NO_BROKER, Ports.free(), Options(environment=ALONE))
        self.serve_by(stack)
        for process in self.processes["server"]:
            process.args[0] = tree.python

    def fill(self) -> None:
        """Migrate with the code of this tree."""
        for module, url in (("inventory_api", self.databases.inventory), ("order_api", self.databases.orders)):
            migration = Process(module, [self._tree.python, "-m", module, "migrate"], {"DATABASE_URL": url})
            if code := migration.start().wait(MIGRATE_SECONDS):
                raise ProcessEnded(f"the migration of {module} ended with exit code {code}\n{migration.tail()}")
        stock.fill_inventory(self.databases.inventory)
        stock.fill_orders(self.databases.orders)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the results. Returns the exit code."""
    options = _options(argv)
    found = command.measured(lambda console: _measure(options, console))
    if found is None:
        return 1
    title = f"CPU per call, {CALLS} concurrent calls: then ({options.revision}) and now, {options.rounds} rounds"
    pairs.show(found, ("then", "now"), title, options.limit, command.output())
    return pairs.exit_code(found, options)


def _measure(options: argparse.Namespace, console: Console) -> Pairs:
    with ExitStack() as stack:
        console.print(f"{options.revision}: checking out and installing", highlight=False)
        then = stack.enter_context(checked_out(options.revision))
        server = command.synced_server(stack, console)
        generator = stack.enter_context(Generator())
        echoes = [Echo(generator, python=tree.python, folder=tree.folder) for tree in (then, PRESENT)]
        sides = [Side(tree, Databases.on_server(server), generator, server.pid) for tree in (then, PRESENT)]
        found: list[Services] = [*echoes, *sides]
        for side in sides:
            side.fill()
        for subject in found:
            stack.callback(subject.stop)
            for process in subject.processes["server"]:
                process.env.update(SAME_HASHES)
        calls: dict[Scenario, Sequence[Services]] = {EMPTY: echoes, RESERVE_HOT: sides, CREATE_ORDER: sides}
        measured = pairs.measure(options, found, calls, console)
        for subject in found:
            subject.check()
    return measured


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("revision", help="the revision to compare with: a tag or a commit")
    pairs.add_options(parser, limit=1.05)
    return pairs.parsed(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
