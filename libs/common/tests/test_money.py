"""Amounts stay exact in every conversion."""

import json
from decimal import Decimal

import pytest
from google.type import money_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shop_common.api import money
from shop_common.api.money import NANOS, UNITS_MAX
from shop_common.api.valid import Fields

units = st.integers(0, UNITS_MAX)
nanos = st.integers(0, NANOS - 1)


def violations(given_money: money_pb2.Money) -> list[str]:
    check = Fields()
    money.checked(check, "price", given_money)
    return [violation.field for violation in check._violations]


@settings(deadline=None)  # a slow machine is not a failure
@given(units=units, nanos=nanos)
@example(units=UNITS_MAX, nanos=NANOS - 1)
@example(units=0, nanos=1)
@example(units=199, nanos=990_000_000)
def test_money_comes_back_as_it_was(units: int, nanos: int) -> None:
    sent = money_pb2.Money(currency_code="USD", units=units, nanos=nanos)
    check = Fields()
    amount = money.checked(check, "price", sent)

    assert check._violations == []
    assert amount * NANOS == units * NANOS + nanos
    assert money.to_proto(amount, "USD") == sent


@settings(deadline=None)  # a slow machine is not a failure
@given(units=units, nanos=nanos)
@example(units=0, nanos=0)
@example(units=100, nanos=0)
@example(units=0, nanos=1)
@example(units=UNITS_MAX, nanos=NANOS - 1)
def test_an_amount_in_json_is_the_same_number_digit_for_digit(units: int, nanos: int) -> None:
    amount = money.exact(units, nanos)
    written = money.as_json_number(amount).decode()

    assert json.loads(written, parse_float=Decimal, parse_int=Decimal) == amount
    assert "e" not in written.lower()
    assert "." not in written or not written.endswith(("0", "."))


@pytest.mark.parametrize(
    ("amount", "written"),
    [
        ("0", b"0"),
        ("0.000", b"0"),
        ("1E+3", b"1000"),
        ("100", b"100"),
        ("199.990000000", b"199.99"),
        ("0.1", b"0.1"),
        ("1E-9", b"0.000000001"),
        ("1000000000000000.000000001", b"1000000000000000.000000001"),
    ],
)
def test_an_amount_is_written_plainly(amount: str, written: bytes) -> None:
    assert money.as_json_number(Decimal(amount)) == written


@settings(deadline=None)  # a slow machine is not a failure
@given(st.lists(st.tuples(units, nanos, st.integers(1, 10**9)), max_size=200))
@example([(UNITS_MAX, NANOS - 1, 10**9)] * 200)
def test_a_total_is_exact_however_large(lines: list[tuple[int, int, int]]) -> None:
    total = money.total([(money.exact(units, nanos), quantity) for units, nanos, quantity in lines])

    in_nanos = sum((units * NANOS + nanos) * quantity for units, nanos, quantity in lines)
    whole, fraction = divmod(in_nanos, NANOS)
    assert str(f"{total:.9f}") == f"{whole}.{fraction:09}"


def test_a_sum_that_a_float_gets_wrong_is_right() -> None:
    assert money.total([(Decimal("0.1"), 3)]) == Decimal("0.3")
    assert money.total([]) == 0


@pytest.mark.parametrize(
    ("units", "nanos", "wrong"),
    [
        (0, 0, []),
        (UNITS_MAX, 0, []),
        (UNITS_MAX + 1, 0, ["price.units"]),
        (-1, 0, ["price.units"]),
        (0, NANOS - 1, []),
        (0, NANOS, ["price.nanos"]),
        (0, -1, ["price.nanos"]),
        (2**63 - 1, 2**31 - 1, ["price.units", "price.nanos"]),
        (-(2**63), -(2**31), ["price.units", "price.nanos"]),
    ],
)
def test_an_amount_is_within_its_bounds(units: int, nanos: int, wrong: list[str]) -> None:
    assert violations(money_pb2.Money(currency_code="USD", units=units, nanos=nanos)) == wrong


@pytest.mark.parametrize(
    ("code", "ok"),
    [
        ("USD", True),
        ("XXX", True),
        ("", False),
        ("usd", False),
        ("US", False),
        ("USDT", False),
        ("\uff35\uff33\uff24", False),
        ("USD\n", False),
    ],
)
def test_a_currency_is_three_capital_letters(code: str, ok: bool) -> None:
    assert (violations(money_pb2.Money(currency_code=code, units=1)) == []) == ok
