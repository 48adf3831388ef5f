"""Each bound is tested on both sides, and one error names all bad fields."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from shop_common import timestamps
from shop_common.api.valid import INT64_MAX, TEXT_LENGTH_MAX, VIOLATION_BYTES_MAX, VIOLATIONS_MAX, Fields, seconds_of
from shop_common.errors import InvalidInput

UUID = "018f3d5e-7b7a-7c3e-9a52-0c8d5f0e9b11"
YEAR_1, YEAR_9999 = -62_135_596_800, 253_402_300_799


def violations(run: Callable[[Fields], object]) -> list[str]:
    """Return the fields that the checks refuse."""
    try:
        with Fields() as check:
            run(check)
    except InvalidInput as error:
        return [violation.field for violation in error.violations]
    return []


def test_all_bad_fields_are_told_at_once_with_their_paths() -> None:
    def check_all() -> None:
        with Fields() as check:
            check.identity("product_id", 0)
            check.identity("user_id", 1)
            line = check.at("lines[3]")
            line.between("quantity", 0, 1, 9)
            line.at("price").violate("units", "must be less")

    with pytest.raises(InvalidInput) as refused:
        check_all()

    assert [v.field for v in refused.value.violations] == ["product_id", "lines[3].quantity", "lines[3].price.units"]
    assert str(refused.value) == (
        f"product_id: must be between 1 and {INT64_MAX}; lines[3].quantity: must be between 1 and 9; "
        "lines[3].price.units: must be less"
    )


def test_however_much_is_wrong_few_and_short_violations_are_kept() -> None:
    check = Fields("é" * 1_000_000)
    for _ in range(10_000):
        check.violate("field", "must be 漢" + "字" * 1_000_000)

    with pytest.raises(InvalidInput) as refused, check:
        pass

    assert len(refused.value.violations) == VIOLATIONS_MAX + 1
    assert refused.value.violations[-1].description == "has more fields that are wrong"
    for violation in refused.value.violations:
        assert len(violation.field.encode()) <= VIOLATION_BYTES_MAX
        assert len(violation.description.encode()) <= VIOLATION_BYTES_MAX


def test_another_error_inside_the_block_is_not_hidden_by_violations() -> None:
    def violate_and_fail() -> None:
        with Fields() as check:
            check.violate("a", "wrong")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        violate_and_fail()


@pytest.mark.parametrize(("value", "ok"), [(0, False), (1, True), (5, True), (9, True), (10, False), (-(2**63), False)])
def test_a_number_is_within_its_bounds(value: int, ok: bool) -> None:
    assert (violations(lambda check: check.between("n", value, 1, 9)) == []) == ok


@pytest.mark.parametrize(("value", "ok"), [(-1, False), (0, False), (1, True), (INT64_MAX, True)])
def test_an_identity_is_positive(value: int, ok: bool) -> None:
    assert (violations(lambda check: check.identity("id", value)) == []) == ok


@pytest.mark.parametrize(
    ("value", "ok"),
    [
        ("", False),
        ("a", True),
        (" ", True),
        ("~" * 64, True),
        ("a" * 65, False),
        ("a\0", False),
        ("a\n", False),
        ("\x1f", False),
        ("\x7f", False),
        ("é", False),
        ("a\u202eb", False),
    ],
)
def test_an_identifier_is_a_few_printable_characters(value: str, ok: bool) -> None:
    assert (violations(lambda check: check.identifier("id", value)) == []) == ok


def test_a_request_id_may_be_absent() -> None:
    assert Fields().request_id("") is None
    assert Fields().request_id("r") == "r"
    assert violations(lambda check: check.request_id("a" * 65)) == ["request_id"]


@pytest.mark.parametrize(
    ("value", "ok"),
    [
        (UUID, True),
        (UUID.upper(), True),
        ("", False),
        (UUID[:-1], False),
        (UUID + "0", False),
        (UUID + "\n", False),
        ("{" + UUID + "}", False),
        (UUID.replace("-", ""), False),
        (UUID.replace("f", "g"), False),
        (UUID.replace("1", "\uff11"), False),
    ],
)
def test_a_uuid_is_in_its_canonical_form(value: str, ok: bool) -> None:
    check = Fields()
    found = check.uuid("id", value)

    assert (check._violations == []) == ok
    assert found == UUID or not ok


@pytest.mark.parametrize(
    ("value", "ok"),
    [
        ("", True),
        ("漢字 and other words 🎁", True),
        ("क्\u200dष 👩\u200d👧", True),
        ("two\nlines", False),
        ("a\ttab", False),
        ("\x85", False),
        ("\x9b31m", False),
        ("\u2028", False),
        ("\u202egnp.exe", False),
        ("\u2066x\u2069", False),
        ("\u200f", False),
        ("in\u200bvisible", False),
        ("\ufeff", False),
        ("\U000e0041", False),
        ("x" * TEXT_LENGTH_MAX, True),
        ("🎁" * TEXT_LENGTH_MAX, True),
        ("x" * (TEXT_LENGTH_MAX + 1), False),
        ("\0", False),
        ("bell\a", False),
        ("\x1b[31m", False),
        ("\x7f", False),
    ],
)
def test_text_is_what_a_person_may_write(value: str, ok: bool) -> None:
    assert (violations(lambda check: check.text("reason", value)) == []) == ok


@pytest.mark.parametrize(("count", "ok"), [(0, False), (1, True), (3, True), (4, False)])
def test_a_repeated_field_has_a_bounded_number_of_entries(count: int, ok: bool) -> None:
    check = Fields()

    assert check.size("lines", [None] * count, 1, 3) is ok
    assert (check._violations == []) == ok


@pytest.mark.parametrize(
    ("asked", "given"), [(0, 50), (1, 1), (999, 999), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)]
)
def test_a_page_size_has_a_default_and_a_largest(asked: int, given: int) -> None:
    assert Fields().page_size(asked) == given
    assert violations(lambda check: check.page_size(-1)) == ["page_size"]


@pytest.mark.parametrize(
    ("value", "ok"),
    [
        (Duration(), False),
        (Duration(nanos=999_999_999), False),
        (Duration(seconds=1), True),
        (Duration(seconds=9, nanos=999_999_999), True),
        (Duration(seconds=10), True),
        (Duration(seconds=10, nanos=1), False),
        (Duration(seconds=-5), False),
        (Duration(seconds=2, nanos=-1), False),
        (Duration(seconds=-2, nanos=1), False),
        (Duration(seconds=2, nanos=10**9), False),
        (Duration(seconds=2**63 - 1), False),
        (Duration(seconds=-(2**63)), False),
    ],
)
def test_a_duration_is_well_formed_and_within_its_bounds(value: Duration, ok: bool) -> None:
    assert (violations(lambda check: check.duration("ttl", value, 1, 10)) == []) == ok


def test_a_duration_is_read_as_seconds() -> None:
    assert seconds_of(Duration(seconds=1, nanos=500_000_000)) == 1.5
    assert seconds_of(Duration(seconds=-1, nanos=-500_000_000)) == -1.5
    assert seconds_of(Duration(seconds=1, nanos=-1)) is None


@pytest.mark.parametrize(
    ("value", "micros"),
    [
        (Timestamp(), 0),
        (Timestamp(nanos=1999), 1),
        (Timestamp(seconds=-1, nanos=999_999_999), -1),
        (Timestamp(seconds=YEAR_1), YEAR_1 * 1_000_000),
        (Timestamp(seconds=YEAR_9999, nanos=999_999_999), YEAR_9999 * 1_000_000 + 999_999),
        (Timestamp(seconds=YEAR_1 - 1), None),
        (Timestamp(seconds=YEAR_9999 + 1), None),
        (Timestamp(nanos=-1), None),
        (Timestamp(nanos=10**9), None),
    ],
)
def test_an_instant_is_in_the_years_that_a_timestamp_has(value: Timestamp, micros: int | None) -> None:
    check = Fields()
    found = timestamps.micros(check.instant("from", value))

    assert (check._violations == []) == (micros is not None)
    assert found == (micros or 0)


def test_an_enum_value_must_be_known() -> None:
    known: dict[int, Any] = {1: "ONE"}

    assert Fields().member("status", 1, known) == "ONE"


@pytest.mark.parametrize("unknown", [0, 2, -1])
def test_an_unknown_enum_value_is_a_violation(unknown: int) -> None:
    assert violations(lambda check: check.member("status", unknown, {1: "ONE"})) == ["status"]
