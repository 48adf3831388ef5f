"""The units and the total of an order, as its events report them one after another."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.faults.history import Event

ADDING = "ORDER_CHANGED"


@dataclass
class OrderUnits:
    """What the events of an order say about its units so far.

    `reports` are the effects of calls about units: pairs of the request id and the units by product. For a change of
    lines, these are the units that the order keeps after it. `kept` are the units by product in each version.
    `added` are the units that changes have added.
    """

    name: str
    reports: list[tuple[str, dict[int, int]]] = field(default_factory=list)
    kept: dict[int, dict[int, int]] = field(default_factory=dict)
    shipped: dict[int, int] = field(default_factory=dict)
    last_kept: dict[int, int] = field(default_factory=dict)
    added: Counter[int] = field(default_factory=Counter)
    restocked: dict[tuple[int, str], int] = field(default_factory=dict)
    _returned: dict[int, int] = field(default_factory=dict)
    _change: str | None = None
    _total: int | None = None

    def add(self, event: Event) -> Iterator[str]:
        """Add the next event. Yields violations."""
        data = event.data
        if "targets" not in data:
            return
        change = _change(data)
        is_changed = change != self._change
        self._change = change
        kept = {target["product_id"]: target["kept"] for target in data["targets"]}
        yield from self._check_targets(event, may_add=is_changed and event.type == ADDING)
        if is_changed and change is not None:
            self.reports.append((change, kept))
        self.reports.extend(_reports(data))
        yield from self._check_total(data, kept, is_changed=is_changed)
        self.kept[data["version"]] = self.last_kept = kept

    def _check_targets(self, event: Event, *, may_add: bool) -> Iterator[str]:
        """An order never ships or gets back fewer units than before. Only a change of its lines adds units."""
        before = self.last_kept if self.kept else None
        for target in event.data["targets"]:
            product, kept, shipped = target["product_id"], target["kept"], target["shipped"]
            returned = sum(each["quantity"] for each in target.get("returned", ()))
            last_kept = kept if before is None else before.get(product, 0)
            last = last_kept, self.shipped.get(product, 0), self._returned.get(product, 0)
            if not (last[2] <= returned <= shipped and last[1] <= shipped <= kept):
                yield f"{self.name}: the targets {target} of {event.type} follow {last}"
            if kept > last_kept:
                self.added[product] += kept - last_kept
                if not may_add:
                    yield f"{self.name}: the targets {target} of {event.type} follow {last}: units were added"
            self.shipped[product], self._returned[product] = shipped, returned
            restocked: Counter[tuple[int, str]] = Counter()
            for each in target.get("returned", ()):
                if each["treatment"] != "DISCARD":  # withheld units are added to the stock, too
                    restocked[product, each["location"]] += each["quantity"]
            self.restocked.update(restocked)
        if before is not None and before.keys() - {target["product_id"] for target in event.data["targets"]}:
            yield f"{self.name}: the targets of {event.type} lack products of {before}"

    def _check_total(self, data: Mapping[str, Any], kept: Mapping[int, int], *, is_changed: bool) -> Iterator[str]:
        """A change computes the total from the units that the order keeps. Nothing else changes it."""
        if "total_amount" not in data:
            return
        total = _cents(data["total_amount"])
        if self._total is None:
            expected = sum(item["quantity"] * _cents(item["price"]) for item in data["items"])
        elif is_changed:
            prices = {item["product_id"]: _cents(item["price"]) for item in data["items"]}
            expected = sum(units * prices[product] for product, units in kept.items())
            expected += sum(_cents(charge["amount"]) for charge in data.get("charges", ()))
        else:
            expected = self._total
        if total != expected:
            yield f"{self.name}: the total in version {data['version']} is {total} cents instead of {expected}"
        self._total = total


def _change(data: Mapping[str, Any]) -> str | None:
    """The request id of the last change of the lines: the label of the only charge."""
    labels = [charge["label"] for charge in data.get("charges", ())]
    return labels[0] if labels else None


def _reports(data: Mapping[str, Any]) -> Iterator[tuple[str, dict[int, int]]]:
    for name, request_id in (("shipment", "tracking_number"), ("cancellation", "reason"), ("return", "reason")):
        if name in data:
            units: Counter[int] = Counter()
            for item in data[name]["items"]:
                units[item["product_id"]] += item["quantity"]
            yield data[name][request_id], dict(units)


def _cents(amount: float) -> int:
    return round(100 * amount)
