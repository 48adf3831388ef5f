"""Writes messages that other Kafka clients can write but confluent-kafka refuses.

An example is a header name that is not UTF-8. This module calls librdkafka directly, the C library of confluent-kafka.
"""

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import confluent_kafka

from shop_common.events.kafka_connection import KafkaConnection

SEND_SECONDS = 60

_PRODUCER = 0
_PARTITION_ANY = -1
_COPY_AND_WAIT_FOR_ROOM = 0x2 | 0x4
_TOPIC, _PARTITION, _VALUE, _KEY, _FLAGS, _TIMESTAMP, _HEADER = 1, 3, 4, 5, 7, 8, 9


@dataclass(frozen=True)
class Foreign:
    """A message of arbitrary bytes. Only header names must not contain NUL. A `timestamp_ms` of 0 means now."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    timestamp_ms: int = 0
    partition: int = _PARTITION_ANY


def send(bootstrap: str, topic: str, messages: Iterable[Foreign], settings: Mapping[str, str] | None = None) -> None:
    """Write the messages, in order, and wait until the broker has acknowledged them.

    `settings` are producer settings, such as `compression.type`. Raises RuntimeError if librdkafka refuses a message or
    a setting, or if the broker does not acknowledge all messages in time.
    """
    library = _library()
    reason = ctypes.create_string_buffer(512)
    conf = ctypes.c_void_p(library.rd_kafka_conf_new())
    ours = {"partitioner": "murmur2_random", "log_level": "0"} | dict(settings or {})
    for name, value in KafkaConnection(bootstrap).configuration(ours).items():
        if library.rd_kafka_conf_set(conf, name.encode(), value.encode(), reason, len(reason)):
            raise RuntimeError(reason.value.decode())
    producer = ctypes.c_void_p(library.rd_kafka_new(_PRODUCER, conf, reason, len(reason)))
    try:
        for message in messages:
            parts = _parts(topic, message)
            if error := library.rd_kafka_produceva(producer, parts, len(parts)):
                raise RuntimeError(library.rd_kafka_error_string(ctypes.c_void_p(error)).decode())
        library.rd_kafka_flush(producer, SEND_SECONDS * 1000)
        if left := library.rd_kafka_outq_len(producer):
            raise RuntimeError(f"{topic}: the broker did not acknowledge {left} messages within {SEND_SECONDS} s")
    finally:
        library.rd_kafka_destroy(producer)


class _Memory(ctypes.Structure):
    _fields_ = (("pointer", ctypes.c_char_p), ("size", ctypes.c_size_t))


class _Header(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p), ("size", ctypes.c_ssize_t))


class _Content(ctypes.Union):
    _fields_ = (
        ("text", ctypes.c_char_p),
        ("int32", ctypes.c_int32),
        ("int", ctypes.c_int),
        ("int64", ctypes.c_int64),
        ("memory", _Memory),
        ("header", _Header),
        ("padding", ctypes.c_char * 64),
    )


class _Part(ctypes.Structure):
    """The C type rd_kafka_vu_t: one part of a message, with its kind."""

    _fields_ = (("kind", ctypes.c_int), ("content", _Content))


def _parts(topic: str, message: Foreign) -> "ctypes.Array[_Part]":
    parts = [
        _Part(_TOPIC, _Content(text=topic.encode())),
        _Part(_PARTITION, _Content(int32=message.partition)),
        _Part(_VALUE, _Content(memory=_memory(message.value))),
        _Part(_KEY, _Content(memory=_memory(message.key))),
        _Part(_FLAGS, _Content(int=_COPY_AND_WAIT_FOR_ROOM)),
        _Part(_TIMESTAMP, _Content(int64=message.timestamp_ms)),
        *(
            _Part(_HEADER, _Content(header=_Header(name, value, -1 if value is None else len(value))))
            for name, value in message.headers
        ),
    ]
    return (_Part * len(parts))(*parts)


def _memory(value: bytes | None) -> _Memory:
    return _Memory(value, len(value or b""))


@cache
def _library() -> Any:
    # The extension module of confluent-kafka links librdkafka, so the functions of librdkafka are found through it.
    library: Any = ctypes.CDLL(confluent_kafka.cimpl.__file__)
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_produceva"):
        getattr(library, name).restype = ctypes.c_void_p
    library.rd_kafka_error_string.restype = ctypes.c_char_p
    return library
