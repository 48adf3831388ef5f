"""The JSON text of the columns orders.charges and orders.labels."""

from decimal import Decimal

import orjson

from order_api.domain.model import Charge, ChargeKind, Labels

NO_CHARGES = "[]"
NO_LABELS = "{}"


def packed_charges(charges: tuple[Charge, ...]) -> str:
    """Return a JSON array of [kind, label, amount], with the exact amount as a string."""
    if not charges:
        return NO_CHARGES
    return orjson.dumps([(each.kind, each.label, str(each.amount)) for each in charges]).decode()


def charges_of(text: str) -> tuple[Charge, ...]:
    if text == NO_CHARGES:
        return ()
    return tuple(Charge(ChargeKind(kind), label, Decimal(amount)) for kind, label, amount in orjson.loads(text))


def packed_labels(labels: Labels) -> str:
    """Return a JSON object of the values by name."""
    return orjson.dumps(dict(labels)).decode() if labels else NO_LABELS


def labels_of(text: str) -> Labels:
    return () if text == NO_LABELS else tuple(sorted(orjson.loads(text).items()))
