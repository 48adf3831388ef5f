"""The counters of an item, recomputed from its events."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.faults.history import Event


def allocations_of(event: Event) -> dict[int, int]:
    """Return the units that the reservation of the event takes from each item, by item id."""
    return {part["item_id"]: part["quantity"] for part in event.data["allocations"]}


@dataclass
class ItemCounters:
    """The counters of an item after its events so far."""

    item_id: int
    quantity: int = 0
    reserved: int = 0
    withheld: int = 0
    moved_withheld: int = 0
    """The sum of the withheld units of all movements."""
    version: int = 0
    sequence: int = 0
    additions: list[int] = field(default_factory=list)
    fulfilled: int = 0
    revision: int = 0
    moved: int = 0
    """The sum of all movements."""
    moved_out: int = 0
    """The units of the movements of the kind FULFILLED."""
    returned: list[int] = field(default_factory=list)
    """The units of each movement of the kind RETURNED."""
    removals: list[int] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    """The units of each movement with a reference, which a client requested. Negative if units were taken out."""

    def update(self, event: Event) -> Iterator[str]:
        """Apply a STOCK_UPDATED event. Yields violations."""
        yield from self._check_number(event)
        data = event.data
        if data["version"] != self.version + 1 or data["reserved_quantity"] != self.reserved:
            yield f"item {self.item_id}: {dict(data)} follows {self}"
        added = data["quantity"] - self.quantity
        self.withheld = data.get("withheld_quantity", 0)
        if added < 0:
            self.removals.append(-added)
        elif added:
            self.additions.append(added)
        self.quantity, self.reserved, self.version = data["quantity"], data["reserved_quantity"], data["version"]

    def move(self, event: Event) -> Iterator[str]:
        """Apply a STOCK_MOVED event. Yields violations."""
        data = event.data
        self.moved += data["quantity"]
        if data["kind"] == "FULFILLED":
            self.moved_out -= data["quantity"]
        if data["kind"] == "RETURNED":
            self.returned.append(data["quantity"])
        if "reference" in data and data["quantity"]:
            self.changed.append(data["quantity"])
        self.moved_withheld += data.get("withheld", 0)
        after = (data["revision"], data["quantity_after"], data.get("withheld_after", 0))
        if after != (self.revision + 1, self.moved, self.moved_withheld):
            yield f"item {self.item_id}: the movement {dict(data)} follows revision {self.revision}"
        self.revision = data["revision"]

    def apply(self, event: Event, units: int) -> Iterator[str]:
        """Apply an event of a reservation that draws this many units from the item. Yields violations."""
        yield from self._check_number(event)
        if event.type == "STOCK_RESERVED":
            self.reserved += units
        elif event.type != "STOCK_RESERVATION_CONFIRMED":
            self.reserved -= units
        if event.type == "STOCK_FULFILLED":
            self.quantity -= units
            self.fulfilled += units
        if not 0 <= self.reserved <= self.quantity - self.withheld:
            yield (
                f"item {self.item_id}: {self.reserved} of {self.quantity} units are reserved after {event.type}, "
                f"and {self.withheld} are withheld"
            )

    def _check_number(self, event: Event) -> Iterator[str]:
        if event.sequence <= self.sequence:
            yield f"item {self.item_id}: number {event.sequence} follows {self.sequence}"
        self.sequence = event.sequence
