"""Delete old rows of the audit logs of both databases.

Nothing else deletes them. On PostgreSQL the databases' URLs must be those of the owners, because no other role may
delete these rows. The command works in small transactions, and may be interrupted and repeated.
"""

import argparse
from datetime import timedelta

from shopctl.data import audit_log
from shopctl.system import target
from shopctl.terminal import durations
from shopctl.terminal.output import add_json, print_json

AGE_MIN = timedelta(days=1)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--older-than", type=_age, required=True, metavar="AGE", help="minimum age of the rows, such as 400d"
    )
    add_json(parser)
    target.add_databases(parser)


def run(options: argparse.Namespace) -> int:
    deleted = audit_log.purge(target.databases(options), options.older_than)
    if options.json:
        print_json(deleted)
    else:
        for service, count in deleted.items():
            print(f"{service}: {count} rows deleted")
    return 0


def _age(text: str) -> timedelta:
    age = durations.parse(text)
    if age < AGE_MIN:
        raise argparse.ArgumentTypeError(f"must be {AGE_MIN.days}d or more")
    return age
