"""Converts a message that cannot be handled into a dead letter for `<topic>.dlq`, and a dead letter into its event.

A dead letter is a row of the outbox, so it reaches Kafka as reliably as an event. It has the value, headers and id of
the message. If a message is set aside twice, both dead letters have the same id. Bytes in a header's value that are not
UTF-8 are replaced. If the name of a header is not UTF-8, all headers are dropped.

A dead letter has these additional headers:

    dlq_topic, dlq_partition, dlq_offset    the position of the message
    dlq_consumer                            the consumer group that set it aside
    dlq_reason                              UNDECODABLE, or FAILED if its handler failed
    dlq_error                               the error, in one line
    dlq_encoding                            base64, if the value is not text or too large to be stored as text
    dlq_truncated                           true, if only the beginning of the value is kept; see the original message
"""

import base64
from datetime import datetime
from enum import StrEnum
from uuid import NAMESPACE_URL, UUID, uuid5

import orjson
from sqlalchemy.exc import StatementError

from shop_common.events.broker import Event
from shop_common.events.outbox import PAYLOAD_BYTES_MAX, TENANT_HEADER, Record, shard_of
from shop_common.events.received import Received
from shop_common.identity import tenant
from shop_common.telemetry import tracing

SUFFIX = ".dlq"
HEADER_PREFIX = "dlq_"
ERROR_LENGTH_MAX = 500
KEY_LENGTH_MAX = 1000
HEADERS_LENGTH_MAX = 10_000
"""Limit on the total length of a message's headers. Further headers are dropped, so that the relay can send the row."""

_UNDER_BASE64_BYTES_MAX = PAYLOAD_BYTES_MAX // 4 * 3


class Reason(StrEnum):
    """Why a message was set aside."""

    UNDECODABLE = "UNDECODABLE"
    FAILED = "FAILED"


def dead_letter(message: Received, reason: Reason, error: BaseException, *, consumer: str, now: datetime) -> Record:
    """Return the dead letter of a message, as a row of the outbox. The message may contain any bytes."""
    topic, partition, offset = message.position
    key = _text(message.key)[:KEY_LENGTH_MAX]
    payload, more = _payload(message.value)
    headers = (
        _headers(message)
        | more
        | {
            "dlq_topic": topic,
            "dlq_partition": str(partition),
            "dlq_offset": str(offset),
            "dlq_consumer": consumer,
            "dlq_reason": reason,
            "dlq_error": one_line(error),
        }
    )
    return Record(
        shard=shard_of(key),
        event_id=_uuid(headers.get("ce_id", ""), f"{topic}/{partition}/{offset}"),
        topic=topic + SUFFIX,
        key=key,
        type=headers.get("ce_type", ""),
        payload=payload,
        headers=orjson.dumps(headers).decode(),
        traceparent=tracing.traceparent_in(message.headers),
        created_at=now,
    )


def redriven(letter: Event, topic: str) -> Record | None:
    """Return the original event of a dead letter, as a row of the outbox for its original topic.

    Its `created_at` is the time of the letter. Returns None if the letter has only a part of the value, or if the value
    is not text, or if the event would have another tenant than the letter. The letter may have any bytes.
    """
    payload = _original_payload(letter)
    if payload is None:
        return None
    key = _text(letter.key or b"")[:KEY_LENGTH_MAX]
    headers = _headers(letter)
    if (headers.get(TENANT_HEADER) or tenant.DEFAULT) != letter.tenant:
        return None  # further headers were dropped, and this is one of them
    return Record(
        shard=shard_of(key),
        event_id=_uuid(headers.get("ce_id", ""), f"{letter.topic}/{letter.partition}/{letter.offset}"),
        topic=topic,
        key=key,
        type=headers.get("ce_type", ""),
        payload=payload,
        headers=orjson.dumps(headers).decode(),
        traceparent=tracing.traceparent_in(letter.headers),
        created_at=letter.time,
    )


def one_line(error: BaseException) -> str:
    """Return the error in one line, without SQL and without parameters."""
    # The text of a SQLAlchemy error contains the statement and its parameters.
    cause = error.orig if isinstance(error, StatementError) and error.orig is not None else error
    lines = str(cause).splitlines() or [""]
    return _text(f"{type(cause).__name__}: {lines[0]}".encode(errors="replace"))[:ERROR_LENGTH_MAX]


def _original_payload(letter: Event) -> str | None:
    if letter.header("dlq_truncated"):
        return None
    value = letter.value
    try:
        if letter.header("dlq_encoding") == "base64":
            value = base64.b64decode(value, validate=True)
        payload = value.decode()
    except ValueError:
        return None
    return payload if "\x00" not in payload and len(value) <= PAYLOAD_BYTES_MAX else None


def _headers(message: Received | Event) -> dict[str, str]:
    kept: dict[str, str] = {}
    room = HEADERS_LENGTH_MAX
    for name, value in message.headers or ():
        if name.startswith(HEADER_PREFIX):
            continue  # the sender must not set these headers
        text = _text(value)
        room -= len(name) + len(text)
        if room < 0:
            break
        # Consumers use the first value of a header.
        kept.setdefault(_text(name.encode()), text)
    return kept


def _payload(value: bytes) -> tuple[str, dict[str, str]]:
    """Return the value as text that both databases can store, and the headers that describe its encoding."""
    headers: dict[str, str] = {}
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\x00"
    if "\x00" not in text and len(value) <= PAYLOAD_BYTES_MAX:
        return text, headers
    headers["dlq_encoding"] = "base64"
    if len(value) > _UNDER_BASE64_BYTES_MAX:
        headers["dlq_truncated"] = "true"
    return base64.b64encode(value[:_UNDER_BASE64_BYTES_MAX]).decode(), headers


def _text(value: bytes) -> str:
    """Decode as UTF-8. Replaces invalid bytes, and NUL, which PostgreSQL cannot store in text."""
    return value.decode(errors="replace").replace("\x00", "�")


def _uuid(text: str, where: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        return str(uuid5(NAMESPACE_URL, where))
