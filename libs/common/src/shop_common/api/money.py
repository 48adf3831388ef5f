"""Converts exact amounts: google.type.Money in the API, Decimal in the code, JSON numbers in events. Never a float."""

import re
from decimal import Decimal, localcontext

from google.type import money_pb2

from shop_common.api.valid import Fields

NANOS = 1_000_000_000
UNITS_MAX = 10**15
"""The largest amount, in units of its currency. With nine decimals it fits the column type NUMERIC(28, 9)."""

_CURRENCY = re.compile(r"[A-Z]{3}\Z")
# Enough digits for the total of 200 lines, each with 10^9 pieces that cost 10^15 units and have nine decimals.
_PRECISION = 60


def checked(check: Fields, field: str, money: money_pb2.Money) -> Decimal:
    """Return the amount of a Money. Records a violation for each invalid part. A negative amount is invalid."""
    if not is_currency(money.currency_code):
        check.violate(f"{field}.currency_code", "must be a currency code of three capital letters (ISO 4217)")
    if not 0 <= money.units <= UNITS_MAX:
        check.violate(f"{field}.units", f"must be between 0 and {UNITS_MAX}")
    if not 0 <= money.nanos < NANOS:
        check.violate(f"{field}.nanos", f"must be between 0 and {NANOS - 1}")
    return exact(money.units, money.nanos)


def is_currency(code: str) -> bool:
    """Return whether the code has the form of an ISO 4217 currency code. The currency need not exist."""
    return _CURRENCY.match(code) is not None


def exact(units: int, nanos: int) -> Decimal:
    """Return units and nanos (billionths) as one exact number."""
    return Decimal(units) if nanos == 0 else (Decimal(units * NANOS + nanos)).scaleb(-9)


def to_proto(amount: Decimal, currency: str) -> money_pb2.Money:
    """Convert an amount with up to nine decimals to Money."""
    units = int(amount)
    nanos = int((amount - units).scaleb(9))
    return money_pb2.Money(currency_code=currency, units=units, nanos=nanos)


def total(lines: list[tuple[Decimal, int]]) -> Decimal:
    """Return the exact sum of price × quantity over all lines."""
    with localcontext() as context:
        context.prec = _PRECISION
        return sum((price * quantity for price, quantity in lines), Decimal(0))


def as_json_number(amount: Decimal) -> bytes:
    """Return the exact amount as a JSON number such as `199.99`, without an exponent or trailing zeros."""
    text = f"{amount:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.encode()
