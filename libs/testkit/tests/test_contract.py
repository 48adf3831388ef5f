"""The contract of the events: its examples conform to it, and it names each kind of violation."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from testkit.contract import ASYNCAPI, Contract, ContractBroken, Example, validator

EXAMPLES = list(validator().examples())
EVENTS = [example for example in EXAMPLES if not example.topic.endswith(".dlq")]

Damage = Callable[[dict[str, Any]], Any]

DETAILS = {
    "charges",
    "external_reference",
    "labels",
    "order_version",
    "withheld",
    "withheld_after",
    "withheld_quantity",
}
"""The fields that only some events of their type have."""


@pytest.fixture
def contract() -> Contract:
    return validator()


def _named(example: Example) -> str:
    return f"{example.topic}-{example.type}"


def test_there_are_both_topics_each_with_its_dead_letters(contract: Contract) -> None:
    assert contract.topics == ["order-events", "inventory-events", "order-events.dlq", "inventory-events.dlq"]


@pytest.mark.parametrize("topic", validator().topics)
def test_every_type_of_event_has_an_example(contract: Contract, topic: str) -> None:
    assert {example.type for example in EXAMPLES if example.topic == topic} == set(contract.types(topic))


@pytest.mark.parametrize("example", EXAMPLES, ids=_named)
def test_the_examples_conform_to_the_contract(contract: Contract, example: Example) -> None:
    contract.check(example.topic, example.key, example.headers, example.value)


def test_its_schemas_are_schemas() -> None:
    schemas = yaml.safe_load(ASYNCAPI.read_text())["components"]["schemas"]
    for schema in schemas.values():
        Draft7Validator.check_schema(schema)


@pytest.mark.parametrize("example", EVENTS, ids=_named)
def test_fields_may_be_added_to_the_data(contract: Contract, example: Example) -> None:
    payload = copy.deepcopy(example.payload)
    payload["data"]["colour"] = "green"

    contract.check(example.topic, example.key, example.headers, json.dumps(payload).encode())


@pytest.mark.parametrize(
    ("example", "field"),
    [(example, field) for example in EVENTS for field in example.payload["data"] if field in DETAILS],
    ids=lambda value: value if isinstance(value, str) else value.type,
)
def test_details_may_be_left_out(contract: Contract, example: Example, field: str) -> None:
    payload = copy.deepcopy(example.payload)
    del payload["data"][field]

    contract.check(example.topic, example.key, example.headers, json.dumps(payload).encode())


@pytest.mark.parametrize(
    ("example", "field"),
    [(example, field) for example in EVENTS for field in example.payload["data"] if field not in DETAILS],
    ids=lambda value: value if isinstance(value, str) else value.type,
)
def test_no_other_field_of_the_data_may_be_left_out(contract: Contract, example: Example, field: str) -> None:
    payload = copy.deepcopy(example.payload)
    del payload["data"][field]

    with pytest.raises(ContractBroken, match=rf"value\.data: '{field}' is a required property"):
        contract.check(example.topic, example.key, example.headers, json.dumps(payload).encode())


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("ORDER_CREATED", lambda value: value.update(source="x"), "'source' was unexpected"),
        ("ORDER_CREATED", lambda value: value.update(timestamp="2024-01-15 10:30"), "value.timestamp"),
        ("ORDER_CREATED", lambda value: value.update(timestamp="2024-02-30T10:30:00Z"), "value.timestamp"),
        ("ORDER_CREATED", lambda value: value.update(event_type="ORDER_EATEN"), "'ORDER_EATEN'"),
        ("ORDER_CREATED", lambda value: value.update(event_type="STOCK_UPDATED"), "'STOCK_UPDATED'"),
        ("ORDER_CREATED", lambda value: value.update(event_type=["ORDER_CREATED"]), "['ORDER_CREATED']"),
        (
            "ORDER_CREATED",
            lambda value: value["data"].update(total_amount="199.99"),
            "value.data.total_amount",
        ),
        ("ORDER_CREATED", lambda value: value["data"].update(status="CONFIRMED"), "value.data.status"),
        ("ORDER_CREATED", lambda value: value["data"].update(currency="usd"), "value.data.currency"),
        ("ORDER_CREATED", lambda value: value["data"]["items"].clear(), "value.data.items"),
        (
            "ORDER_CREATED",
            lambda value: value["data"]["items"][1].update(price=-1),
            "value.data.items[1].price",
        ),
        ("ORDER_CREATED", lambda value: value["data"]["items"][0].pop("quantity"), "value.data.items[0]"),
        ("ORDER_SHIPPED", lambda value: value["data"].update(version=0), "value.data.version"),
        ("STOCK_UPDATED", lambda value: value["data"].update(quantity=-1), "value.data.quantity"),
        ("STOCK_UPDATED", lambda value: value["data"].update(quantity=1.5), "value.data.quantity"),
        ("STOCK_UPDATED", lambda value: value["data"].update(location="über"), "value.data.location"),
        ("STOCK_RESERVED", lambda value: value["data"].update(expires_at=None), "value.data.expires_at"),
        (
            "STOCK_RESERVED",
            lambda value: value["data"].update(reservation_id="7"),
            "value.data.reservation_id",
        ),
        ("STOCK_RELEASED", lambda value: value["data"]["allocations"].clear(), "value.data.allocations"),
    ],
)
def test_the_error_names_the_field_with_a_bad_value(
    contract: Contract, kind: str, damage: Damage, message: str
) -> None:
    example = _example(kind)
    payload = copy.deepcopy(example.payload)
    damage(payload)

    with pytest.raises(ContractBroken) as refusal:
        contract.check(example.topic, example.key, example.headers, json.dumps(payload).encode())

    assert message in str(refusal.value)


@pytest.mark.parametrize("value", [b"", b"{", b"\xff", b"NaN", b'{"event_type": NaN}', b"[]", b"null", b"7"])
def test_a_value_that_is_not_an_event_is_refused(contract: Contract, value: bytes) -> None:
    example = _example("ORDER_CREATED")

    with pytest.raises(ContractBroken, match="order-events: "):
        contract.check(example.topic, example.key, example.headers, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ce_id", "7"),
        ("ce_type", "ORDER_CONFIRMED"),
        ("ce_source", "order-api"),
        ("ce_time", "yesterday"),
        ("ce_specversion", "0.3"),
        ("ce_sequence", "-1"),
        ("traceparent", "00-0-0-0"),
    ],
)
def test_a_bad_header_is_refused_by_name(contract: Contract, name: str, value: str) -> None:
    example = _example("ORDER_CREATED")

    with pytest.raises(ContractBroken, match=rf"headers\.{name}: "):
        contract.check(example.topic, example.key, {**example.headers, name: value}, example.value)


def test_the_headers_of_an_event_are_all_required_but_the_trace(contract: Contract) -> None:
    example = _example("ORDER_CREATED")
    for name in example.headers:
        headers = {other: text for other, text in example.headers.items() if other != name}
        if name == "traceparent":
            contract.check(example.topic, example.key, headers, example.value)
        else:
            with pytest.raises(ContractBroken, match=f"headers: '{name}' is a required property"):
                contract.check(example.topic, example.key, headers, example.value)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("ORDER_CREATED", "01930d4a-0000-7000-8000-000000000000"),
        ("ORDER_CREATED", ""),
        ("STOCK_UPDATED", "2"),
        ("STOCK_UPDATED", "01"),
    ],
)
def test_the_key_must_equal_the_field_of_the_value(contract: Contract, kind: str, key: str) -> None:
    example = _example(kind)

    with pytest.raises(ContractBroken, match="key: "):
        contract.check(example.topic, key, example.headers, example.value)


def test_a_topic_that_is_not_ours_is_refused(contract: Contract) -> None:
    example = _example("ORDER_CREATED")

    with pytest.raises(ContractBroken, match="payments: no such topic"):
        contract.check("payments", example.key, example.headers, example.value)


def test_the_error_lists_all_violations(contract: Contract) -> None:
    example = _example("STOCK_UPDATED")
    payload = copy.deepcopy(example.payload)
    payload["data"] |= {"item_id": 0, "version": "1"}

    with pytest.raises(ContractBroken) as refusal:
        contract.check(example.topic, "", {**example.headers, "ce_id": ""}, json.dumps(payload).encode())

    for message in (
        "inventory-events STOCK_UPDATED",
        "headers.ce_id",
        "key",
        "value.data.item_id",
        "value.data.version",
    ):
        assert message in str(refusal.value)


def test_a_dead_letter_may_have_any_bytes_but_must_have_its_headers(contract: Contract) -> None:
    example = _example("DEAD_LETTER")
    contract.check("order-events.dlq", "any key", example.headers, b"\xff\x00")

    for name in ("dlq_topic", "dlq_partition", "dlq_offset", "dlq_reason", "dlq_error", "ce_id", "ce_type"):
        headers = {other: text for other, text in example.headers.items() if other != name}
        with pytest.raises(ContractBroken, match=f"headers: '{name}' is a required property"):
            contract.check("order-events.dlq", "any key", headers, b"")


def test_an_amount_is_read_exactly(contract: Contract) -> None:
    example = _example("ORDER_CREATED")
    # As a float, this is 10^15 and would pass.
    above = example.value.replace(b"199.99", b"1000000000000000.000000001")

    with pytest.raises(ContractBroken, match=r"value\.data\.total_amount"):
        contract.check(example.topic, example.key, example.headers, above)


def _example(kind: str) -> Example:
    return next(example for example in EXAMPLES if example.type == kind)
