"""The client sends every field of a request, and returns every field of a response."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from itertools import count
from types import MappingProxyType, UnionType
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status
from google.type.money_pb2 import Money

from shop_client import NewOrder, OrderLines, StockChange, calls
from shop_client.calls import BatchedCall, Call, Method
from shop_protos.inventory.v1 import inventory_pb2
from shop_protos.order.v1 import order_pb2

NOT_SENT = {
    "OrderLines.tenant",  # only order-api may set these fields
    "OrderLines.subject",
    "ConfirmReservationsRequest.order_version",
    "ListInventoryItemsRequest.page_token",  # the iterators over pages set the tokens
    "ListMovementsRequest.page_token",
    "ListLocationsRequest.page_token",
    "ListReservationsRequest.page_token",
    "ListOrdersRequest.page_token",
}

NOT_RETURNED = {
    "Shortfall.product_id",  # the caller compares the quantities of the reservations with those of its lines
    "Shortfall.requested_quantity",
    "Shortfall.reserved_quantity",
}


def test_every_field_of_a_request_is_sent() -> None:
    requests = [(method, request) for method, request, _ in full_calls()]
    fields = {each for _, request in requests for each in fields_of(request)}

    assert {method for method, _ in requests} == {each for each in vars(calls).values() if isinstance(each, Method)}
    assert ("CreateOrderItem.location", True) in fields
    assert {name for name, _ in fields} - {name for name, is_set in fields if is_set} == NOT_SENT


def test_every_field_of_a_response_is_returned() -> None:
    fields: set[str] = set()
    returned: set[str] = set()
    for method, _, read in full_calls():
        response = method.response()
        expected = dict(fill(response, count(1_000)))
        values = set(leaves(read(response)))
        fields |= expected.keys()
        returned |= {name for name, value in expected.items() if value in values}

    assert "OrderItem.location" in fields
    assert fields - returned == NOT_RETURNED


def full_calls() -> Iterator[tuple[Method, Message, Callable[[Any], Any]]]:
    """Call each function of `calls` with a value for every parameter. Yields what it sends and how it reads."""
    for name, function in vars(calls).items():
        if name.startswith("_") or not inspect.isfunction(function) or function.__module__ != calls.__name__:
            continue
        hints = typing.get_type_hints(function)
        if typing.get_origin(hints.pop("return")) not in (Call, BatchedCall):
            continue
        call = function(**{parameter: example(hint) for parameter, hint in hints.items()})
        if isinstance(call, Call):
            yield call.method, call.request, call.read
        else:
            yield call.rpc.method, call.rpc.request([call.message]), reader(call)


def reader(call: BatchedCall[Any]) -> Callable[[Any], Any]:
    return lambda response: call.read(call.rpc.results([call.message], response)[0])


SIMPLE: Mapping[Any, Any] = MappingProxyType(
    {int: 1, str: "A", float: 60.0, bool: True, Decimal: Decimal("1.5"), datetime: datetime(2026, 1, 1, tzinfo=UTC)}
)


NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHANGES = (
    StockChange(1, "A", received=1, version=1, reason="A", reference="A", occurred_at=NOW),
    StockChange(1, "A", adjusted=1),
    StockChange(1, "A", counted=1, release_shortfall=True),
    StockChange(1, "A", moved=1, to_location="B"),
    StockChange(1, "A", withheld=1, reason="A"),
)
"""A change has exactly one of these quantities."""


def example(hint: Any) -> Any:
    """Return a value of the type that is no default."""
    if hint == Iterable[StockChange]:
        return CHANGES
    if hint in SIMPLE:
        return SIMPLE[hint]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is UnionType:
        return example(arguments[0])
    if typing.get_origin(hint) is tuple and Ellipsis not in arguments:
        return tuple(example(each) for each in arguments)
    if typing.get_origin(hint) is Mapping:
        return {"name": "value"}
    if arguments:
        return (example(arguments[0]),)
    if hint is order_pb2.CreateOrderRequest:
        return calls.new_order(example(NewOrder), "trace")
    if hint is inventory_pb2.OrderLines:
        return calls.order_lines(example(OrderLines), "trace")
    if issubclass(hint, StrEnum):
        return next(iter(hint))
    return hint(**{name: example(each) for name, each in typing.get_type_hints(hint).items()})


def fields_of(message: Message) -> Iterator[tuple[str, bool]]:
    """Yield Message.field, and whether it has a value, for each field of the message and of the messages in it."""
    values = dict(message.ListFields())
    for field in message.DESCRIPTOR.fields:
        yield f"{message.DESCRIPTOR.name}.{field.name}", field in values
    for field, value in values.items():
        if field.message_type is not None and field.message_type.file.package.startswith("shop."):
            for each in value if field.is_repeated else [value]:
                yield from fields_of(each)


def fill(message: Message, numbers: Iterator[int]) -> Iterator[tuple[str, Any]]:
    """Give each field a value of its own, and yield Message.field with the value that the client returns for it."""
    for field in message.DESCRIPTOR.fields:
        name = f"{message.DESCRIPTOR.name}.{field.name}"
        if field.message_type is Status.DESCRIPTOR:
            continue  # raised as a ShopError
        number = next(numbers)
        value = getattr(message, field.name)
        part = value.add() if field.is_repeated and field.message_type is not None else value
        if isinstance(part, Timestamp):
            part.seconds = number
            yield name, datetime.fromtimestamp(number, UTC)
        elif isinstance(part, Money):
            part.units, part.currency_code = number, "EUR"
            yield name, Decimal(number)
        elif isinstance(part, Message):
            yield from fill(part, numbers)
        elif field.enum_type is not None:
            setattr(message, field.name, field.enum_type.values[-1].number)
            yield name, field.enum_type.values[-1].name
        elif field.type == FieldDescriptor.TYPE_BOOL:
            setattr(message, field.name, True)
            yield name, True
        else:
            own = str(number) if field.type == FieldDescriptor.TYPE_STRING else number
            if field.is_repeated:
                value.append(own)
            else:
                setattr(message, field.name, own)
            yield name, own


def leaves(value: Any) -> Iterator[Any]:
    """Yield the simple values in a value of the client. The name of an enum's value is that of the contract."""
    if isinstance(value, StrEnum):
        prefix = "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in type(value).__name__)
        yield f"{prefix.lstrip('_')}_{value}"
    elif isinstance(value, Mapping):
        yield from [*value.keys(), *value.values()]
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for each in value:
            yield from leaves(each)
    else:
        yield value
