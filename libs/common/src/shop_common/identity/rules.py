"""Reads the access rule of each RPC from the contract (proto/shop/access/v1/access.proto)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor

from shop_protos.access.v1 import access_pb2

ORDERS_ANY = "orders.any"
DELEGATE = "delegate"

PERMISSIONS: Mapping[str, str] = {
    "inventory.read": "read items, stock and reservations",
    "inventory.write": "add stock and set quantities",
    "stock.reserve": "reserve, confirm and release stock",
    "orders.read": "read the caller's own orders",
    "orders.write": "create the caller's own orders and change their status",
    ORDERS_ANY: "with orders.read or orders.write: the orders of every user",
    DELEGATE: "act for the tenants and users that a call names; for order-api",
    "admin": "create, list and revoke API keys; erase users; redrive dead letters",
    "keys.read": "read the digests of API keys; for inventory-api",
    "maintenance": "expire reservations, cancel abandoned orders, purge history, verify stock; for reservation-reaper",
}
"""Every permission, with a description of the calls that it allows."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The access rule of one RPC: the permission that its callers need. It is empty if every known caller may call it.

    `own_user_field` is the request field with the id of a user, and empty if there is no such field. With a dot, it is
    a field of each entry of a list, and the RPC itself checks each entry.
    """

    permission: str
    own_user_field: str = ""


class RuleMissing(Exception):
    """An RPC has no access rule or an invalid one. The message names every fault."""


def rules_of(service: ServiceDescriptor) -> dict[str, Rule]:
    """Return the rules of the service by path, such as `/shop.order.v1.OrderService/GetOrder`. Raises RuleMissing."""
    faults = [fault for method in service.methods for fault in _faults(method)]
    if faults:
        raise RuleMissing("; ".join(faults))
    return {f"/{service.full_name}/{method.name}": _rule(method) for method in service.methods}


def _rule(method: MethodDescriptor) -> Rule:
    access = method.GetOptions().Extensions[access_pb2.access]
    return Rule(access.permission, access.own_user_field)


def _faults(method: MethodDescriptor) -> Iterator[str]:
    rule = _rule(method)
    if method.GetOptions().Extensions[access_pb2.access].any_caller:
        if rule.permission:
            yield f"{method.full_name} is for any caller, but has the permission {rule.permission!r}"
    elif not rule.permission:
        yield f"{method.full_name} has no rule"
    elif rule.permission not in PERMISSIONS:
        yield f"{method.full_name} has the unknown permission {rule.permission!r}"
    if rule.own_user_field:
        field = _field(method.input_type, rule.own_user_field)
        if field is None or field.type != FieldDescriptor.TYPE_INT64:
            yield f"{method.full_name} has no int64 field {rule.own_user_field!r}"


def _field(message: Descriptor, path: str) -> FieldDescriptor | None:
    """Return the field `name` of the message, or the field `list.name` of the entries of a list of messages."""
    name, _, rest = path.partition(".")
    field = message.fields_by_name.get(name)
    if not rest or field is None:
        return field
    return _field(field.message_type, rest) if field.is_repeated and field.message_type is not None else None
