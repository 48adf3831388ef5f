"""Recognises repeated events by their sequences."""

from collections import OrderedDict

from shop_client.events.event import Event

ENTITIES_MAX = 100_000


class Repeats:
    """The highest sequence of each entity, for the entities whose events were handled last."""

    def __init__(self, entities_max: int = ENTITIES_MAX) -> None:
        self._highest: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._entities_max = entities_max

    def includes(self, event: Event) -> bool:
        """Return whether this event, or a later one of its entity, was handled."""
        highest = self._highest.get((event.source, event.entity))
        return highest is not None and event.sequence is not None and event.sequence <= highest

    def add(self, event: Event) -> None:
        """Note that this event was handled."""
        if event.sequence is None:
            return
        key = event.source, event.entity
        self._highest[key] = event.sequence
        self._highest.move_to_end(key)
        if len(self._highest) > self._entities_max:
            self._highest.popitem(last=False)
