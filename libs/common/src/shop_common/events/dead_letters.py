"""Messages that nobody can act on, set aside in `<topic>.dlq` with all that is needed to send them again.

A dead letter is a row of the outbox, and so takes the same safe way to Kafka as every event. Its value and headers are
those of the message, its id too, so that one that is set aside twice can be told. Headers that cannot be read are left
out. Further headers:

    dlq_topic, dlq_partition, dlq_offset    where it came from
    dlq_consumer                            which consumer group could not act on it
    dlq_reason                              UNDECODABLE, or FAILED: its handler did not get along with it
    dlq_error                               one line for people
    dlq_encoding                            base64: the value is, since it is not text
    dlq_truncated                           true: the value is not all there; the message at dlq_offset is whole
"""

import base64
from datetime import datetime
from enum import StrEnum
from uuid import NAMESPACE_URL, UUID, uuid5

import orjson
from sqlalchemy.exc import StatementError

from shop_common.events.outbox import PAYLOAD_BYTES_MAX, Record, shard_of
from shop_common.events.received import Received
from shop_common.telemetry import tracing

SUFFIX = ".dlq"
HEADER_PREFIX = "dlq_"
ERROR_LENGTH_MAX = 500
KEY_LENGTH_MAX = 1000
HEADERS_LENGTH_MAX = 10_000
"""Of the message's own headers together; those beyond are left out, so that the relay can always send the row."""

_UNDER_BASE64_BYTES_MAX = PAYLOAD_BYTES_MAX // 4 * 3


class Reason(StrEnum):
    """Why a message was set aside."""

    UNDECODABLE = "UNDECODABLE"
    FAILED = "FAILED"


def dead_letter(message: Received, reason: Reason, error: BaseException, *, consumer: str, now: datetime) -> Record:
    """The message as a row of the outbox. Any message can be one, whatever its bytes."""
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
            "dlq_error": in_a_line(error),
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


def in_a_line(error: BaseException) -> str:
    """What went wrong, in one line, without SQL or data of the statement."""
    # SQLAlchemy's own text ends with the statement and its parameters.
    cause = error.orig if isinstance(error, StatementError) and error.orig is not None else error
    lines = str(cause).splitlines() or [""]
    return _text(f"{type(cause).__name__}: {lines[0]}".encode(errors="replace"))[:ERROR_LENGTH_MAX]


def _headers(message: Received) -> dict[str, str]:
    kept = {}
    room = HEADERS_LENGTH_MAX
    for name, value in message.headers or ():
        if name.startswith(HEADER_PREFIX):
            continue  # only we say what a dead letter is
        text = _text(value)
        room -= len(name) + len(text)
        if room < 0:
            break
        kept[_text(name.encode())] = text
    return kept


def _payload(value: bytes) -> tuple[str, dict[str, str]]:
    """The value as text that every database takes, and the headers that say how."""
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
    """As text that PostgreSQL takes: it knows no NUL."""
    return value.decode(errors="replace").replace("\x00", "�")


def _uuid(text: str, where: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        return str(uuid5(NAMESPACE_URL, where))
