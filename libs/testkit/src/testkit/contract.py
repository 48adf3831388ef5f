"""Holds events against `proto/asyncapi.yaml`, the contract that consumers rely on.

    validator().check("order-events", key, headers, value)

raises ContractBroken, which names everything that is wrong with the event. Tests do it to all they consume.
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
    """The event is not what the contract says; the text names all that is wrong with it."""


@dataclass(frozen=True)
class Example:
    """An event as the contract shows it; `payload` is the value, not yet encoded."""

    topic: str
    type: str
    key: str
    headers: Mapping[str, str]
    payload: Any

    @property
    def value(self) -> bytes:
        """The value as it would be on the topic."""
        return self.payload.encode() if isinstance(self.payload, str) else json.dumps(self.payload).encode()


class Contract:
    """The channels and messages of an AsyncAPI 3 document, ready to be checked against."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._channels = {channel["address"]: channel for channel in document["channels"].values()}
        self._registry: Registry[Any] = Registry().with_resource(_BASE, DRAFT7.create_resource(document))
        self._formats = FormatChecker(formats=())
        self._formats.checks("date-time", raises=ValueError)(_is_a_time)

    @property
    def topics(self) -> list[str]:
        """All topics, dead-letter ones included."""
        return list(self._channels)

    def types(self, topic: str) -> list[str]:
        """The types of event that a topic carries."""
        return list(self._channels[topic]["messages"])

    def examples(self) -> Iterator[Example]:
        """The examples of every topic and type, in the document's order."""
        for topic in self.topics:
            for kind in self.types(topic):
                for example in self._document["components"]["messages"][kind]["examples"]:
                    payload = example["payload"]
                    key = "" if kind == DEAD_LETTER else self._key_of(topic, payload)
                    yield Example(topic, kind, key, example["headers"], payload)

    def check(self, topic: str, key: str, headers: Mapping[str, str], value: bytes) -> None:
        """Hold one event against the contract. Raises ContractBroken.

        Key and value of a dead letter are not looked at: they may be the reason why it is there.
        """
        if topic not in self._channels:
            raise ContractBroken(f"{topic}: no such topic; there are {', '.join(self.topics)}")
        if DEAD_LETTER in self.types(topic):
            _refuse_any(topic, self._faults("headers", dict(headers), f"{DEAD_LETTER}/headers"))
            return
        payload = _decode(topic, value)
        kind = payload.get("event_type") if isinstance(payload, dict) else None
        if kind not in self.types(topic):
            raise ContractBroken(f"{topic}: event_type is {kind!r}; there are {', '.join(self.types(topic))}")
        faults = [
            *self._faults("headers", dict(headers), f"{kind}/headers"),
            *self._faults("key", key, f"{kind}/bindings/kafka/key"),
            *self._faults("value", payload, f"{kind}/payload"),
        ]
        # Only what is well-formed can be compared.
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
        if key != self._key_of(topic, payload):
            faults.append(f"key: {key!r}, where the value says {self._key_of(topic, payload)!r}")
        if headers["ce_type"] != payload["event_type"]:
            faults.append(f"headers.ce_type: {headers['ce_type']!r}, where the value says {payload['event_type']!r}")
        return faults

    def _key_of(self, topic: str, payload: Any) -> str:
        """The part of the value that the topic's events are keyed by."""
        _, path = self._channels[topic]["x-key-location"].split("#/")
        for name in path.split("/"):
            payload = payload[name]
        return str(payload)


@cache
def validator() -> Contract:
    """The contract of this repository."""
    return Contract(yaml.safe_load(ASYNCAPI.read_text(encoding="utf-8")))


def _decode(topic: str, value: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(value.decode(), parse_float=Decimal, parse_constant=refuse)
    except ValueError as error:
        raise ContractBroken(f"{topic}: the value is not JSON in UTF-8: {error}") from error


def _is_a_time(value: object) -> bool:
    """Raises ValueError for a day or an hour that does not exist, which no pattern can tell."""
    return not isinstance(value, str) or bool(datetime.fromisoformat(value))


def _refuse_any(event: str, faults: Sequence[str]) -> None:
    if faults:
        raise ContractBroken("\n".join([f"{event} breaks the contract:", *(f"  {fault}" for fault in faults)]))
