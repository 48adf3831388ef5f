"""Pages and their tokens: a token is valid only for its own list and filter."""

import base64
import json
from dataclasses import dataclass
from uuid import UUID

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shop_common.api.paging import TOKEN_LENGTH_MAX, Page, PageRequest, Position, next_token, page_of, page_request
from shop_common.api.valid import Fields

AN_ID = "018f3d5e-7b7a-7c3e-9a52-0c8d5f0e9b11"


@dataclass(frozen=True)
class Filter:
    user: int | None = None
    status: str | None = None
    tenant: str = "default"


def token_of(position: Position, wanted: Filter = Filter(), kind: str = "parcels") -> str:
    return next_token(Page([], position), PageRequest(kind, wanted, None, 1))


def read(token: str, wanted: Filter = Filter(), kind: str = "parcels", types: tuple[type, ...] = (int,)) -> object:
    """The position in the token, or the fields that it violates."""
    check = Fields()
    asked = page_request(check, kind, wanted, page_size=0, page_token=token, position=types)
    return [violation.field for violation in check._violations] or asked.after


def packed(parts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def digest() -> str:
    token = token_of((1,))
    parts = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    return str(parts[0])


@pytest.mark.parametrize(
    ("rows", "on_page", "next_position"), [(0, 0, None), (2, 2, None), (3, 3, None), (4, 3, (2,)), (9, 3, (2,))]
)
def test_a_row_too_many_says_that_more_follow(rows: int, on_page: int, next_position: Position | None) -> None:
    page = page_of(list(range(rows)), 3, lambda row: (row,))

    assert (len(page.rows), page.next_position) == (on_page, next_position)


def test_the_last_page_has_no_token() -> None:
    assert next_token(Page([], None), PageRequest("parcels", Filter(), None, 1)) == ""
    assert read("") is None


@settings(deadline=None)  # a slow machine is not a failure
@given(number=st.integers(-(2**63), 2**63 - 1), each=st.uuids())
def test_a_token_carries_its_position_at_full_precision(number: int, each: UUID) -> None:
    assert read(token_of((number, str(each))), types=(int, UUID)) == (number, str(each))


@settings(deadline=None)  # a slow machine is not a failure
@given(number=st.integers(-(2**63), 2**63 - 1))
def test_a_token_is_short_and_safe_in_a_url(number: int) -> None:
    token = token_of((number, AN_ID))

    assert len(token) <= TOKEN_LENGTH_MAX
    assert all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in token)


@pytest.mark.parametrize(
    ("wanted", "kind"),
    [
        (Filter(7), "parcels"),
        (Filter(None, "SENT"), "parcels"),
        (Filter(8, "SENT"), "parcels"),
        (Filter(7, "SENT"), "items"),
    ],
)
def test_a_token_of_one_filter_or_list_is_none_of_another(wanted: Filter, kind: str) -> None:
    token = token_of((1,), Filter(7, "SENT"))

    assert read(token, Filter(7, "SENT")) == (1,)
    assert read(token, wanted, kind) == ["page_token"]


@pytest.mark.parametrize(
    "token",
    [
        "x",
        " ",
        "====",
        "no token",
        "\0",
        "漢字",
        "🎁" * 4,
        "A" * 10_000,
        "_" * TOKEN_LENGTH_MAX,
        packed(None),
        packed({}),
        packed([]),
        packed("text"),
        packed(1),
        packed([1]),
        packed(["0" * 12, 1]),
        packed([digest()]),
        packed([digest(), 1, 2]),
        packed([digest(), None]),
        packed([digest(), True]),
        packed([digest(), 1.5]),
        packed([digest(), "1"]),
        packed([digest(), [1]]),
        packed([digest(), 2**63]),
        packed([digest(), -(2**63) - 1]),
        base64.b64encode(b"\xff\xfe").decode(),
        base64.b64encode(b"[" * 300).decode(),
        base64.b64encode(b'["' + digest().encode() + b'", 1e999]').decode(),
        base64.b64encode(b'["' + digest().encode() + b'", NaN]').decode(),
        base64.b64encode(b'["' + digest().encode() + b'", 99999999999999999999999]').decode(),
        token_of((1,))[:-2],
        token_of((1,)) + "A",
    ],
)
def test_what_is_no_token_is_a_violation_and_never_a_failure(token: str) -> None:
    assert read(token) == ["page_token"]


@pytest.mark.parametrize("part", ["", "x", AN_ID + "\n", AN_ID.upper(), AN_ID[:-1], 1, None, "'; DROP TABLE parcels"])
def test_an_id_in_a_token_is_a_uuid(part: object) -> None:
    assert read(packed([digest(), part]), types=(UUID,)) == ["page_token"]
    assert read(packed([digest(), AN_ID]), types=(UUID,)) == (AN_ID,)


@settings(deadline=None)  # a slow machine is not a failure
@given(token=st.text(min_size=1, max_size=600))
def test_no_text_makes_it_fail(token: str) -> None:
    read(token)


@settings(deadline=None)  # a slow machine is not a failure
@given(token=st.binary(min_size=1, max_size=300).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_no_bytes_make_it_fail(token: str) -> None:
    assert read(token) == ["page_token"]


def test_a_page_has_a_size_within_bounds() -> None:
    check = Fields()
    assert page_request(check, "parcels", Filter(), page_size=7, page_token="", position=(int,)).size == 7
    page_request(check, "parcels", Filter(), page_size=-1, page_token="?", position=(int,))
    assert {violation.field for violation in check._violations} == {"page_size", "page_token"}
