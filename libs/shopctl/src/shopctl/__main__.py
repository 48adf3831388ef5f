"""The operator's command line.

    ./task COMMAND [OPTION ...]

By default a command prints tables for people. With --json it writes only JSON to standard output, with stable keys. A
command that fails prints one sentence to standard error and exits with code 1. A wrong command line exits with code 2.
"""

import sys
from collections.abc import Sequence

from shopctl.terminal import command_line
from shopctl.terminal.command_line import Command

COMMANDS = {
    "health": Command("succeed only if every process is ready and alive", "shopctl.watch.health"),
    "status": Command("show processes, row counts, outbox backlog and consumer lag", "shopctl.watch.status"),
    "trace": Command("print what happened to an order, as trees of spans", "shopctl.tracing.trace"),
    "top": Command("show live rates, latencies, backlog and lag of the running processes", "shopctl.watch.top"),
    "test-grpc": Command("call every RPC once and check the responses", "shopctl.smoke.every_rpc"),
    "postgres-create-roles": Command(
        "create a database on PostgreSQL and its roles", "shopctl.data.postgres_create_roles"
    ),
    "db-shell": Command("open an SQL shell on a database", "shopctl.data.db_shell"),
    "seed-data": Command("create a product catalogue through the API", "shopctl.data.seed_data"),
    "load": Command("generate load at a steady rate, for a limited time", "shopctl.load.load"),
    "query-inventory": Command("show items", "shopctl.data.query_inventory"),
    "adjust": Command("correct the quantity of an item", "shopctl.stock.change", {"kind": "adjust"}),
    "count": Command(
        "set the quantity of an item to the units that were counted", "shopctl.stock.change", {"kind": "count"}
    ),
    "move": Command("move units to another location", "shopctl.stock.change", {"kind": "move"}),
    "withhold": Command("take units of an item out of sale", "shopctl.stock.change", {"kind": "withhold"}),
    "give-back": Command("put withheld units on sale again", "shopctl.stock.change", {"kind": "give-back"}),
    "import": Command("change stock as a CSV file describes it", "shopctl.stock.import_stock"),
    "export": Command("write stock or movements as CSV", "shopctl.stock.export"),
    "verify": Command("compare the counters of the stock with its reservations", "shopctl.data.verify"),
    "keys": Command("create, list or revoke API keys", "shopctl.data.keys"),
    "query-orders": Command("show orders", "shopctl.data.query_orders"),
    "audit": Command("show which callers changed data", "shopctl.data.audit"),
    "audit-purge": Command("delete old rows of the audit logs", "shopctl.data.audit_purge"),
    "kafka-address": Command("print the address of the broker", "shopctl.events.kafka_address"),
    "kafka-topics": Command("list the topics with their partitions and events", "shopctl.events.kafka_topics"),
    "kafka-create-topics": Command("create the topics that are missing", "shopctl.events.kafka_create_topics"),
    "kafka-create-users": Command("create users of the broker", "shopctl.events.kafka_create_users"),
    "kafka-create-acls": Command("create the access rules that are missing", "shopctl.events.kafka_create_acls"),
    "kafka-consume-orders": Command("print order events", "shopctl.events.kafka_consume", {"topic": "order-events"}),
    "kafka-consume-inventory": Command(
        "print inventory events", "shopctl.events.kafka_consume", {"topic": "inventory-events"}
    ),
    "dlq": Command("list dead letters with their reasons, and redrive them", "shopctl.events.dlq"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return command_line.run(COMMANDS, "Operate a running system.", arguments)


if __name__ == "__main__":
    sys.exit(main())
