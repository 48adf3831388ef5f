"""Counts the lines of a request, which are its weight for rate limits."""

from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message


def lines_of(request: Message) -> int:
    """Return the number of lines in the request, at least 1.

    Lines are the entries of its lists of messages. An entry that has such lists itself counts as their entries. So
    a BatchReserveStock has the lines of all its orders, a CreateOrder the lines, charges and labels of its order, and a
    request without such a list has one.
    """
    lists = _lists_of(request.DESCRIPTOR)
    if not lists:
        return 1
    return max(1, sum(_lines_in(getattr(request, name), has_lists) for name, has_lists in lists))


def _lines_in(entries: "list[Message]", has_lists: bool) -> int:
    return sum(map(lines_of, entries)) if has_lists else len(entries)


@cache
def _lists_of(message: Descriptor) -> tuple[tuple[str, bool], ...]:
    """Return the names of the lists of messages in this message, and whether their entries have such lists."""
    return tuple((field.name, bool(_lists_of(entry))) for field in message.fields if (entry := _entry_of(field)))


def _entry_of(field: FieldDescriptor) -> Descriptor | None:
    return field.message_type if field.is_repeated else None
