"""Sends messages that cannot be handled to a dead-letter topic."""

from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from shop_client.events.event import headers_of

SEND_SECONDS_MAX = 10.0
ERROR_CHARACTERS_MAX = 500
_PREFIX = "dlq_"

_Headers = list[tuple[str, str | bytes | None]]


class DeadLetters:
    """The dead-letter topics of one consumer group: `TOPIC.GROUP.dlq` for each topic."""

    def __init__(self, connection: Mapping[str, Any], group: str) -> None:
        self._group = group
        self._producer = Producer(
            {
                **connection,
                "acks": "all",
                "enable.idempotence": True,
                # The partition of a key is the same as in the original topic.
                "partitioner": "murmur2_random",
                "message.timeout.ms": int(SEND_SECONDS_MAX * 1000),
                # Leave the limit to the broker: the original message may have any size.
                "message.max.bytes": 1_000_000_000,
            }
        )

    def send(self, message: Message, reason: str, error: Exception) -> None:
        """Send the message with its headers, and with headers that describe the failure. Raises KafkaException.

        Waits for the acknowledgement of the broker. May be repeated: the message is then on the topic more than once.
        """
        lines = str(error).splitlines() or [""]
        added = {
            "dlq_topic": message.topic() or "",
            "dlq_partition": str(message.partition()),
            "dlq_offset": str(message.offset()),
            "dlq_consumer": self._group,
            "dlq_reason": reason,
            "dlq_error": f"{type(error).__name__}: {lines[0]}"[:ERROR_CHARACTERS_MAX],
        }
        kept = [each for each in headers_of(message) or () if not each[0].startswith(_PREFIX)]
        headers: _Headers = [*kept, *((name, value.encode(errors="replace")) for name, value in added.items())]
        try:
            self._produce(message, message.value(), headers)
        except KafkaException as failure:
            if failure.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise
            # With these headers the message is too large. The original message has the value.
            self._produce(message, b"", [*headers, ("dlq_truncated", b"true")])

    def _produce(self, message: Message, value: bytes | None, headers: _Headers) -> None:
        results: list[KafkaError | None] = []
        self._producer.produce(
            f"{message.topic()}.{self._group}.dlq",
            value,
            message.key(),
            headers=headers,
            on_delivery=lambda error, _: results.append(error),
        )
        while not results:  # the message's timeout ends the loop
            self._producer.poll(0.1)
        if results[0] is not None:
            raise KafkaException(results[0])
