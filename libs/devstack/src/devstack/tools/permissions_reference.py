"""Generates README's table of permissions from the rules in the protos.

    python -m devstack.tools.permissions_reference generate
    python -m devstack.tools.permissions_reference check       # fail if the table is not up to date

./task lint runs the check.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from shop_common.identity.rules import ORDERS_ANY, PERMISSIONS, rules_of
from shopctl.client import SERVICES

FILE = Path("README.md")
_BEGIN = "<!-- Made by `python -m devstack.tools.permissions_reference generate`; do not edit. -->\n"
_END = "<!-- End of the table of permissions. -->\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table, or compare it with the protos. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m devstack.tools.permissions_reference", description=__doc__)
    parser.add_argument("action", choices=["generate", "check"])
    action = parser.parse_args(argv).action
    text = FILE.read_text()
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        sys.stderr.write(f"{FILE} has no place for the table: {_BEGIN}{_END}")
        return 1
    made = before + begin + "".join(f"{line}\n" for line in table()) + end + after
    if action == "generate":
        FILE.write_text(made)
    elif made != text:
        sys.stderr.write(
            f"{FILE} does not have the contract's permissions: "
            "run `python -m devstack.tools.permissions_reference generate`\n"
        )
        return 1
    return 0


def table() -> Iterator[str]:
    """Yield the lines of the table: each permission, what it allows, and the RPCs that need it."""
    rpcs = defaultdict(list)
    for service in SERVICES:
        for path, rule in rules_of(service).items():
            rpcs[rule.permission].append(path.rpartition("/")[2])
    yield "| permission | allows to | RPCs |"
    yield "|---|---|---|"
    for permission, allows in PERMISSIONS.items():
        # Two services may have an RPC of the same name.
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(rpcs[permission]))
        if permission == ORDERS_ANY:
            names = "those of `orders.read` and `orders.write`"
        yield f"| `{permission}` | {allows} | {names} |"


if __name__ == "__main__":
    sys.exit(main())
