"""Keyset pagination. An opaque page token contains the position of the last row, and a digest of list and filter.

A token that is malformed, or from another list, filter or tenant, is a violation of `page_token`. Tokens are neither
secret nor signed, because they contain only a position that the caller has already seen.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar
from uuid import UUID

import orjson

from shop_common.api.valid import IDENTIFIER_PATTERN, UUID_PATTERN, Fields
from shop_common.identity import tenant
from shop_common.identity.tenant import OfTenant
from shop_common.timestamps import micros

_Row = TypeVar("_Row")
_Filter = TypeVar("_Filter", bound=OfTenant | None)
_TenantFilter = TypeVar("_TenantFilter", bound=OfTenant)

TOKEN_LENGTH_MAX = 512
Position = tuple[int | str, ...]

_MICROS_MIN = micros(datetime.min.replace(tzinfo=UTC))
_MICROS_MAX = micros(datetime.max.replace(tzinfo=UTC))


@dataclass(frozen=True)
class Page(Generic[_Row]):
    """The rows of one page. `next_position` is the position of its last row, or None if this is the last page."""

    rows: Sequence[_Row]
    next_position: Position | None


@dataclass(frozen=True)
class PageRequest(Generic[_Filter]):
    """A request for up to `size` rows of the list `kind` that match `filter`. None for `after` means from the start."""

    kind: str
    filter: _Filter
    after: Position | None
    size: int

    @property
    def tenant(self: "PageRequest[_TenantFilter]") -> str:
        """The tenant whose rows the list contains."""
        return self.filter.tenant


def page_of(rows: Sequence[_Row], size: int, position: Callable[[_Row], Position]) -> Page[_Row]:
    """Make a page from up to `size` + 1 rows. The extra row only shows that another page follows."""
    if len(rows) <= size:
        return Page(rows, None)
    return Page(rows[:size], position(rows[size - 1]))


def page_request(
    check: Fields, kind: str, row_filter: _Filter, *, page_size: int, page_token: str, position: tuple[type, ...]
) -> PageRequest[_Filter]:
    """Parse the page_size and page_token of a list request.

    `position` has the type of each part of a position: int, datetime (the part is microseconds since 1970), UUID (the
    part is its text) or str (an identifier). Records a violation of `page_size` if that is negative, and of
    `page_token` if the token does not come from the same list with the same filter.
    """
    after = None
    if page_token:
        after = _position(page_token, position, _digest(kind, row_filter))
        if after is None:
            check.violate("page_token", "must be the next_page_token of the same call with the same filter")
    return PageRequest(kind, row_filter, after, check.page_size(page_size))


def next_token(page: Page[_Row], request: PageRequest[_Filter]) -> str:
    """Return the token of the next page, or an empty string after the last page."""
    if page.next_position is None:
        return ""
    parts = [_digest(request.kind, request.filter), *page.next_position]
    return base64.urlsafe_b64encode(orjson.dumps(parts)).decode().rstrip("=")


def _position(token: str, kinds: tuple[type, ...], digest: str) -> Position | None:
    if len(token) > TOKEN_LENGTH_MAX:
        return None
    try:
        parts = orjson.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        return None
    if not isinstance(parts, list) or len(parts) != len(kinds) + 1 or parts[0] != digest:
        return None
    position = tuple(parts[1:])
    return position if all(_is_a(kind, part) for kind, part in zip(kinds, position, strict=True)) else None


def _is_a(kind: type, part: object) -> bool:
    """Return whether a part has the type `kind`. Callers can forge tokens, so check what the database would reject."""
    if kind is int:
        return type(part) is int and -(2**63) <= part < 2**63
    if kind is datetime:
        return type(part) is int and _MICROS_MIN <= part <= _MICROS_MAX
    if kind is UUID:
        return isinstance(part, str) and UUID_PATTERN.match(part) is not None
    if kind is str:
        return isinstance(part, str) and IDENTIFIER_PATTERN.match(part) is not None
    raise TypeError(f"a position has no parts of {kind}")


def _digest(kind: str, row_filter: OfTenant | None) -> str:
    if row_filter is not None:
        kind = tenant.qualified(row_filter.tenant, kind)
    return hashlib.blake2b(repr((kind, row_filter)).encode(), digest_size=6).hexdigest()
