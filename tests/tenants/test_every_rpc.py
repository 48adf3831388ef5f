"""Every RPC of every service, called with the ids of another tenant's rows, behaves as if these rows did not exist.

The requests are generated from the contract. A new RPC is covered without a new test, unless one of its fields has a
new name: then `Rows.values` needs a value for the name.
"""

import re
from base64 import b32encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.type.money_pb2 import Money

from shop_common.identity.authenticator import TENANT
from shop_common.rpc.tls import channel_credentials
from shop_protos.access.v1.keys_pb2 import CreateApiKeyRequest
from shop_protos.inventory.v1.inventory_pb2 import UpdateLocationRequest
from shop_protos.order.v1.order_pb2 import ORDER_STATUS_CANCELLED, RETURN_TREATMENT_RESTOCK
from shopctl.system.layout import RELAY
from shopctl.watch.scrape import Labels, Scrape, scrape
from testkit.calls import Outcome, outcome
from testkit.eventually import eventually
from tests.identity.apis import METHODS, Apis, every_method
from tests.tenants.conftest import System

USER = 1
DAY_SECONDS = 24 * 3600
OF_THE_CALLER = {"GetCaller"}
"""RPCs that return only the caller itself, and so read no rows."""

READS = [
    method
    for method in METHODS
    if method.name not in OF_THE_CALLER
    and method.GetOptions().idempotency_level == MethodOptions.IdempotencyLevel.NO_SIDE_EFFECTS
]
NOT_COMPARED = {
    "id", "key", "item_id", "created_at", "updated_at", "expires_at", "reserved_until", "next_page_token", "details",
    "read_at", "next_release_at",
}  # fmt: skip
"""Fields of responses that are different in each response, and details of errors, whose messages are compared."""


@dataclass(frozen=True)
class Rows:
    """The values that identify a tenant's rows: an item, a reservation of its units, an order, and an API key."""

    product: int
    location: str
    cart: str
    item: int
    reservation: str
    order: str
    api_key: str

    @classmethod
    def that_do_not_exist(cls) -> "Rows":
        number = uuid4()
        api_key = b32encode(number.bytes).decode().lower()[:16]
        return cls(10**15, "nowhere", f"cart-{number}", 10**16, str(uuid4()), str(uuid4()), api_key)

    def values(self, method: MethodDescriptor) -> Mapping[str, object]:
        """The value of each field of a request, by name. Fields that are not here get none."""
        ids = {"OrderService": self.order, "ApiKeyService": self.api_key}
        of_inventory = self.item if method.name.endswith("InventoryItem") else self.reservation
        return {
            "id": ids.get(method.containing_service.name, of_inventory),
            "name": "name",
            "permissions": ["orders.read"],
            # ListOrders does not take a product together with the user of the caller.
            "product_id": None if method.name == "ListOrders" else self.product,
            "product_ids": [self.product],
            "by_location": True,
            "active": True,
            "allow_partial": True,
            "retake": True,
            "priority": 3,
            "region": "region",
            "location": self.location,
            # The stock of the cart is not shipped, so there is no movement of this order.
            "order_id": "" if method.name == "ListMovements" else self.cart,
            "reservation_id": self.reservation,
            "user_id": USER,
            "item_id": 1,
            "quantity": 3,
            "received": 3,
            "required_quantity": 3,
            "request_id": "request",
            "treatment": RETURN_TREATMENT_RESTOCK,
            "status": 0 if method in READS else ORDER_STATUS_CANCELLED,
            "price": Money(currency_code="EUR", units=5),
            # Only for ChangeOrder it is required.
            "version": 1 if method.name == "ChangeOrder" else None,
            "change_id": str(UUID(int=1)),
            "confirmed": True,
            "grace": DAY_SECONDS,
            "older_than": DAY_SECONDS,
            "partition": 0,
            "offset": 2**60,
            **dict.fromkeys(OMITTED),
        }

    def named(self, text: str) -> str:
        """The text with the name of each of these values instead of the value."""
        for name, value in vars(self).items():
            # Other numbers may be equal to the id of an item, so replace it only where it can be nothing else.
            pattern = rf"^{value}$|(?<=item ){value}\b" if name == "item" else rf"\b{re.escape(str(value))}\b"
            text = re.sub(pattern, f"<{name}>", text)
        return text


OMITTED = (
    "reason", "ttl", "state", "max_count", "page_size", "page_token", "created_after", "created_before",
    "expires_in", "used_at", "traceparent", "tenant", "subject", "after_item_id", "repair", "charges", "policy",
    "external_reference", "labels", "label", "statuses", "updated_after", "updated_before",
    "carrier", "tracking_number", "order_version",
    "kind", "actor", "adjusted", "counted", "reference", "occurred_at", "atomic", "move", "as_of",
    "buyer_limit", "withholding_reason", "release_shortfall",
)  # fmt: skip


def request_for(method: MethodDescriptor, rows: Rows) -> Message:
    request = GetMessageClass(method.input_type)()
    _fill(request, rows.values(method))
    return request


def _fill(message: Any, values: Mapping[str, Any]) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.name in values:
            value = values[field.name]
            if value is None:
                continue
            if field.message_type is not None and isinstance(value, int):
                getattr(message, field.name).FromSeconds(value)
            elif isinstance(value, Message):
                getattr(message, field.name).CopyFrom(value)
            elif field.is_repeated:
                getattr(message, field.name).extend(value)
            else:
                setattr(message, field.name, value)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            part = getattr(message, field.name)
            _fill(part.add() if field.is_repeated else part, values)
        else:
            raise AssertionError(f"Rows.values has no value for the field {field.full_name}")


@dataclass(frozen=True)
class Answer:
    """The response of a call, or its refusal, without the values of the rows that the request named."""

    outcome: Outcome
    text: str
    """The text of the response, or the message of the refusal."""


class Caller:
    """Calls every RPC as one user of a tenant."""

    def __init__(self, system: System, apis: Apis, tenant: str, user: object = USER) -> None:
        self._apis = apis
        self.metadata = [("authorization", f"Bearer {system.token(tenant, user)}")]

    def answer(self, method: MethodDescriptor, rows: Rows) -> Answer:
        texts: list[str] = []

        def call() -> None:
            try:
                texts.append(_text(self._apis.response(method, request_for(method, rows), self.metadata)))
            except grpc.RpcError as error:
                texts.append(str(error.details()))
                raise

        ended = outcome(call)
        metadata = {key: rows.named(value) for key, value in ended.metadata.items()}
        return Answer(replace(ended, metadata=metadata), rows.named(texts[0]))


def _text(response: Any) -> str:
    _clear(response)
    return str(response)


def _clear(message: Any) -> None:
    for field, value in message.ListFields():
        if field.name in NOT_COMPARED:
            message.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in value if field.is_repeated else [value]:
                _clear(part)


@pytest.fixture(scope="module")
def apis(system: System) -> Iterator[Apis]:
    opened = Apis(system.stack, channel_credentials(system.files.for_clients.read()))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def tenant() -> str:
    return f"acme-{uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def rows(system: System, tenant: str) -> Rows:
    """The rows of a tenant that the other tenants name in their requests."""
    shop = system.shop(tenant, USER)
    product, location, cart = shop.new_id(), "acme-warehouse", "acme-cart"
    item = shop.add_stock(product, 41, location)
    shop.api.call(shop.api.inventory.UpdateLocation, UpdateLocationRequest(location=location, region="north"))
    reservation = shop.reserve(product, 2, order_id=cart)
    order = shop.create_order((product, 2), user_id=USER)
    created = shop.api.call(
        shop.api.api_keys.CreateApiKey, CreateApiKeyRequest(name="name", permissions=["orders.read"])
    )
    return Rows(product, location, cart, item.id, reservation.id, order.id, created.api_key.id)


@every_method
def test_the_rows_of_another_tenant_do_not_exist(
    method: MethodDescriptor, system: System, apis: Apis, tenant: str, rows: Rows
) -> None:
    if method.name in OF_THE_CALLER:
        return
    owner, other, unrelated = (Caller(system, apis, name) for name in (tenant, *(f"t{uuid4().hex}" for _ in range(2))))
    unknown = Rows.that_do_not_exist()
    before = [owner.answer(read, rows) for read in READS]

    assert other.answer(method, rows) == unrelated.answer(method, unknown)

    assert [owner.answer(read, rows) for read in READS] == before
    if method in READS:
        # The request does name rows, so the comparison above means something.
        assert owner.answer(method, rows) != unrelated.answer(method, unknown)


@every_method
def test_a_user_cannot_choose_another_tenant(method: MethodDescriptor, system: System, apis: Apis, rows: Rows) -> None:
    caller = Caller(system, apis, f"t{uuid4().hex}")
    metadata = [*caller.metadata, (TENANT, "default")]

    refused = outcome(lambda: apis.response(method, request_for(method, rows), metadata))

    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    assert refused.metadata == {"permission": "delegate"}


def test_no_label_of_a_metric_has_a_value_of_a_caller(system: System, apis: Apis, tenant: str, rows: Rows) -> None:
    user, stranger, request_id = (f"{kind}-{uuid4().hex}" for kind in ("user", "stranger", "request"))
    owner, other = Caller(system, apis, tenant, user), Caller(system, apis, stranger)
    shop = system.shop(tenant, user)
    shipped = _shipped(system)

    order = shop.create_order((rows.product, 1), user_id=shop.new_id(), request_id=request_id)
    for method in METHODS:
        owner.answer(method, rows)
        other.answer(method, rows)
        outcome(lambda method=method: apis.response(method, request_for(method, rows), [(TENANT, stranger)]))  # type: ignore[misc]
    shop.change_status(order.id, ORDER_STATUS_CANCELLED)
    eventually(lambda: all(_shipped(system)[database] > count for database, count in shipped.items()))

    seen = {
        value for process in system.stack.processes for labels in _samples(system, process.name) for _, value in labels
    }
    # The calls above are counted, so the processes had these values when they chose their labels.
    assert {f"{method.containing_service.full_name}/{method.name}" for method in METHODS} <= seen
    of_callers = (tenant, user, stranger, request_id, order.id, str(order.user_id), str(rows.product), rows.location,
                  rows.cart, rows.reservation, rows.order, rows.api_key)  # fmt: skip
    assert [value for value in seen if any(each in value for each in of_callers)] == []


def _shipped(system: System) -> Mapping[str, float]:
    """The number of events that the relay has shipped, by database."""
    scraped = _scraped(system, RELAY)
    return {dict(labels)["database"]: n for labels, n in scraped.samples["shop_relay_shipped_events_total"].items()}


def _samples(system: System, process: str) -> list[Labels]:
    return [labels for of_name in _scraped(system, process).samples.values() for labels in of_name]


def _scraped(system: System, process: str) -> Scrape:
    scraped = scrape(f"127.0.0.1:{system.stack.ports.metrics_of(process)}")
    assert isinstance(scraped, Scrape), scraped
    return scraped
