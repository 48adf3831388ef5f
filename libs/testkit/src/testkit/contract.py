"""Checks events against `proto/asyncapi.yaml`, the contract with consumers. Tests check all events that they consume.

    validator().check("order-events", key, headers, value)

This call raises ContractBroken with all violations.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator, FormatChecker
from referencing import Registry
from referencing.jsonschema import DRAFT7

ASYNCAPI = Path(__file__).resolve().parents[4] / "proto" / "asyncapi.yaml"
DEAD_LETTER = "DEAD_LETTER"

_BASE = "urn:shop:asyncapi"


class ContractBroken(Exception):
    """The event violates the contract; the message lists all violations."""


@dataclass(frozen=True)
class Example:
    """An example of an event in the contract; `payload` is the value before encoding."""

    topic: str
    type: str
    key: str
    headers: Mapping[str, str]
    payload: Any

    @property
    def value(self) -> bytes:
        """The encoded value, as on the topic."""
        return self.payload.encode() if isinstance(self.payload, str) else json.dumps(self.payload).encode()


class Contract:
    """The channels and messages of an AsyncAPI 3 document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._channels = {channel["address"]: channel for channel in document["channels"].values()}
        self._registry: Registry[Any] = Registry().with_resource(_BASE, DRAFT7.create_resource(document))
        self._formats = FormatChecker(formats=())
        self._formats.checks("date-time", raises=ValueError)(_is_a_time)

    @property
    def topics(self) -> list[str]:
        """All topics, including dead-letter topics."""
        return list(self._channels)

    def types(self, topic: str) -> list[str]:
        """Return the event types of a topic."""
        return list(self._channels[topic]["messages"])

    def examples(self) -> Iterator[Example]:
        """Yield the examples of every topic and type, in document order."""
        for topic in self.topics:
            for kind in self.types(topic):
                for example in self._document["components"]["messages"][kind]["examples"]:
                    payload = example["payload"]
                    key = "" if kind == DEAD_LETTER else self._key_of(topic, example["headers"], payload)
                    yield Example(topic, kind, key, example["headers"], payload)

    def check(self, topic: str, key: str, headers: Mapping[str, str], value: bytes) -> None:
        """Check one event. Raises ContractBroken.

        The key and value of a dead letter are not checked: they may be the reason why the event was not handled.
        """
        if topic not in self._channels:
            raise ContractBroken(f"{topic}: no such topic; the topics are {', '.join(self.topics)}")
        if DEAD_LETTER in self.types(topic):
            _refuse_any(topic, self._faults("headers", dict(headers), f"{DEAD_LETTER}/headers"))
            return
        payload = _decode(topic, value)
        kind = payload.get("event_type") if isinstance(payload, dict) else None
        if kind not in self.types(topic):
            raise ContractBroken(f"{topic}: event_type is {kind!r}; the types are {', '.join(self.types(topic))}")
        faults = [
            *self._faults("headers", dict(headers), f"{kind}/headers"),
            *self._faults("key", key, f"{kind}/bindings/kafka/key"),
            *self._faults("value", payload, f"{kind}/payload"),
        ]
        # Compare fields only if the event is well-formed.
        _refuse_any(f"{topic} {kind}", faults or self._contradictions(topic, key, headers, payload))

    def _faults(self, what: str, instance: object, schema: str) -> list[str]:
        checker = Draft7Validator(
            {"$ref": f"{_BASE}#/components/messages/{schema}"},
            registry=self._registry,
            format_checker=self._formats,
        )
        return [f"{what}{error.json_path[1:]}: {error.message}" for error in checker.iter_errors(instance)]

    def _contradictions(self, topic: str, key: str, headers: Mapping[str, str], payload: Any) -> list[str]:
        faults = []
        expected = self._key_of(topic, headers, payload)
        if key != expected:
            faults.append(f"key: {key!r}, but the value has {expected!r}")
        if headers["ce_type"] != payload["event_type"]:
            faults.append(f"headers.ce_type: {headers['ce_type']!r}, but the value has {payload['event_type']!r}")
        return faults

    def _key_of(self, topic: str, headers: Mapping[str, str], payload: Any) -> str:
        """Return the key that an event of this topic must have: a part of the value, perhaps after the tenant."""
        channel = self._channels[topic]
        _, path = channel["x-key-location"].split("#/")
        for name in path.split("/"):
            payload = payload[name]
        tenant = headers.get("ce_tenant", "default")
        has_tenant = channel.get("x-key-has-tenant", False) and tenant != "default"
        return f"{tenant}/{payload}" if has_tenant else str(payload)


@cache
def validator() -> Contract:
    """Return the contract of this repository."""
    return Contract(yaml.safe_load(ASYNCAPI.read_text(encoding="utf-8")))


def _decode(topic: str, value: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(value.decode(), parse_float=Decimal, parse_constant=refuse)
    except ValueError as error:
        raise ContractBroken(f"{topic}: the value is not JSON in UTF-8: {error}") from error


def _is_a_time(value: object) -> bool:
    """Raise ValueError if the date or time does not exist. A pattern cannot detect that."""
    return not isinstance(value, str) or bool(datetime.fromisoformat(value))


def _refuse_any(event: str, faults: Sequence[str]) -> None:
    if faults:
        raise ContractBroken("\n".join([f"{event} breaks the contract:", *(f"  {fault}" for fault in faults)]))
