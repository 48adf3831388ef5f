"""Create the access rules (ACLs) that are missing on the broker: which client may write or read which topic.

  event-relay     writes all four topics
  inventory-api   reads order-events, in the group inventory-api, and order-events.dlq, to redrive letters
  order-api       reads inventory-events, in the group order-api, and inventory-events.dlq, to redrive letters
  operator        reads all four topics and the offsets of the groups; writes the two event topics, to redrive letters
  console         reads all four topics and the record of redriven letters; only with --console

A principal is the broker's name for a client: User: and its login, or User: and the subject of its certificate, such as
User:CN=order-api. Other rules stay as they are. The command lists those that allow another principal to write a topic.
Run the command as a principal that may alter the cluster. A broker without an authorizer refuses the command.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from shop_common.events import dead_letter_topic
from shop_common.events.broker import READ_GROUP, REQUEST_SECONDS
from shop_common.events.dead_letters import SUFFIX
from shopctl.events.connection import add_broker, connection
from shopctl.events.topics import READERS, TOPICS
from shopctl.system.layout import INVENTORY_API, ORDER_API, RELAY
from shopctl.terminal.output import add_json, print_json, print_table

_OPERATOR = "shopctl"
_ANY_HOST = "*"
_WRITING = {AclOperation.WRITE, AclOperation.ALL}


@dataclass(frozen=True)
class Principals:
    """The broker's names for the clients."""

    relay: str
    inventory_api: str
    order_api: str
    operator: str
    console: str | None = None
    """None if the console is not connected to the broker."""


def configure(parser: argparse.ArgumentParser) -> None:
    for option, name in (
        ("--event-relay", RELAY),
        ("--inventory-api", INVENTORY_API),
        ("--order-api", ORDER_API),
        ("--operator", _OPERATOR),
    ):
        parser.add_argument(
            option, default=f"User:{name}", metavar="PRINCIPAL", help="its principal (default: %(default)s)"
        )
    parser.add_argument("--console", metavar="PRINCIPAL", help="its principal (default: no rules for the console)")
    add_broker(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Create the missing rules. Raises KafkaException. May be repeated."""
    principals = Principals(
        options.event_relay, options.inventory_api, options.order_api, options.operator, options.console
    )
    admin = AdminClient(connection(options).configuration({"log_level": 0}))
    rules = list(required(principals))
    before = _existing(admin)
    missing = [rule for rule in rules if rule not in before]
    _create(admin, missing)
    strangers = [rule for rule in before if rule not in rules and _lets_write_topics(rule)]
    outcomes = [
        *((rule, "created" if rule in missing else "there already") for rule in rules),
        *((rule, "not one of these: remove it unless it is needed") for rule in strangers),
    ]
    if options.json:
        print_json([_as_json(rule) | {"outcome": outcome} for rule, outcome in outcomes])
    else:
        rows = [(*_as_json(rule).values(), outcome) for rule, outcome in outcomes]
        print_table("access rules", ["principal", "operation", "resource", "name", "outcome"], rows)
    return 0


def required(principals: Principals) -> Iterator[AclBinding]:
    """Yield the rules that these principals need. On the broker, READ and WRITE each include DESCRIBE."""
    topic, group = ResourceType.TOPIC, ResourceType.GROUP
    readers = {INVENTORY_API: principals.inventory_api, ORDER_API: principals.order_api}
    for name in TOPICS:
        yield _allow(principals.relay, AclOperation.WRITE, topic, name)
    for name, reader in READERS.items():
        yield _allow(readers[reader], AclOperation.READ, topic, name)
        # The consumer group has the name of the service.
        yield _allow(readers[reader], AclOperation.READ, group, reader)
        # RedriveDeadLetters reads the letters, and commits to this group which of them were redriven.
        yield _allow(readers[reader], AclOperation.READ, topic, name + SUFFIX)
        yield _allow(readers[reader], AclOperation.READ, group, dead_letter_topic.GROUP)
    for name in TOPICS:
        yield _allow(principals.operator, AclOperation.READ, topic, name)
        if not name.endswith(SUFFIX):
            yield _allow(principals.operator, AclOperation.WRITE, topic, name)
    yield _allow(principals.operator, AclOperation.READ, group, dead_letter_topic.GROUP)
    for name in (*READERS.values(), READ_GROUP):
        yield _allow(principals.operator, AclOperation.DESCRIBE, group, name)
    if principals.console is not None:
        for name in TOPICS:
            yield _allow(principals.console, AclOperation.READ, topic, name)
        yield _allow(principals.console, AclOperation.DESCRIBE, group, dead_letter_topic.GROUP)


def _allow(principal: str, operation: AclOperation, resource: ResourceType, name: str) -> AclBinding:
    return AclBinding(
        resource, name, ResourcePatternType.LITERAL, principal, _ANY_HOST, operation, AclPermissionType.ALLOW
    )


def _existing(admin: AdminClient) -> list[AclBinding]:
    any_text: Any = None  # the value None matches any text; the annotations of confluent-kafka lack it
    everything = AclBindingFilter(
        *(ResourceType.ANY, any_text, ResourcePatternType.ANY, any_text, any_text),
        *(AclOperation.ANY, AclPermissionType.ANY),
    )
    found: list[AclBinding] = admin.describe_acls(everything, request_timeout=REQUEST_SECONDS).result()
    return found


def _create(admin: AdminClient, rules: list[AclBinding]) -> None:
    if rules:
        for created in admin.create_acls(rules, request_timeout=REQUEST_SECONDS).values():
            created.result()


def _lets_write_topics(rule: AclBinding) -> bool:
    prefixed = rule.resource_pattern_type == ResourcePatternType.PREFIXED
    return (
        rule.restype == ResourceType.TOPIC
        and rule.operation in _WRITING
        and rule.permission_type == AclPermissionType.ALLOW
        and any(rule.name in {topic, "*"} or (prefixed and topic.startswith(rule.name)) for topic in TOPICS)
    )


def _as_json(rule: AclBinding) -> dict[str, str]:
    return {
        "principal": rule.principal,
        "operation": AclOperation(rule.operation).name,
        "resource": ResourceType(rule.restype).name,
        "name": rule.name,
    }
