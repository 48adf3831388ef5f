"""Show which callers changed data, newest first: the audit logs of both databases.

A caller is a SPIFFE id, user:SUBJECT or key:ID; event:TYPE is an event that changed data. On PostgreSQL the databases'
URLs must be of a role that may read the table audit_log: the owner's or the console's. With --json, each row is one
line.
"""

import argparse
from collections.abc import Iterator
from itertools import islice

from rich.table import Column

from shopctl.data import audit_log, pages
from shopctl.data.audit_log import AuditFilter, Row
from shopctl.system import target
from shopctl.terminal import since
from shopctl.terminal.output import whole

_RESOURCES_SHOWN = 3


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", type=since.parse, metavar="WHEN", help=f"only changes since then: {since.FORMS}")
    parser.add_argument("--tenant", metavar="NAME", help="only changes by callers of this tenant")
    parser.add_argument("--caller", metavar="NAME", help="only changes by this caller, such as user:1")
    parser.add_argument("--method", metavar="RPC", help="only changes by this RPC, such as CreateOrder")
    parser.add_argument("--resource", metavar="ID", help="only changes of this order, reservation or item")
    pages.configure(parser)
    target.add_databases(parser)


def run(options: argparse.Namespace) -> int:
    wanted = AuditFilter(options.since, options.tenant, options.caller, options.method, options.resource)
    found: Iterator[Row] = islice(
        audit_log.rows(target.databases(options), wanted), None if options.all else options.limit
    )
    columns: list[str | Column] = ["at", "tenant", whole("caller"), "subject", "method", "request_id", "resources"]
    if not options.json:
        found = (row | {"resources": _shortened(row["resources"])} for row in found)
    pages.show(options, "changes", columns, found)
    return 0


def _shortened(resources: list[str]) -> str:
    more = len(resources) - _RESOURCES_SHOWN
    return ", ".join(resources[:_RESOURCES_SHOWN]) + (f" and {more} more" if more > 0 else "")
