"""Create, list or revoke API keys, the credentials of programs.

  keys create --name NAME --permissions P1,P2 [--expires-in 90d]   creates a key and prints its text, only this once
  keys list                                                        lists keys, newest first, without their texts
  keys revoke ID                                                   revokes a key for ever

A program sends the header `authorization: Bearer shop_live_…`. Both APIs accept a new key, and refuse a revoked one,
within 10 seconds. To replace a key without a failed call, create the new one, give it to the program, and revoke the
old one when `keys list` shows that it is no longer used.

The commands need the permission `admin`, and `create` also each permission of the key. docs/security.md lists them.
"""

import argparse
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from rich.table import Column

from shop_common.identity.rules import PERMISSIONS
from shop_protos.access.v1.keys_pb2 import (
    ApiKey,
    CreateApiKeyRequest,
    ListApiKeysRequest,
    RevokeApiKeyRequest,
)
from shopctl.client import Shop
from shopctl.data import pages
from shopctl.system import target
from shopctl.terminal import durations
from shopctl.terminal.output import add_json, error_console, print_json, to_datetime, whole

USABLE_SECONDS = 10
"""The time after which all processes know a new key, or that a key was revoked."""


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    create = actions.add_parser("create", help="create a key and print its text, only this once")
    create.add_argument("--name", required=True, help="what the key is for: 1 to 64 ASCII characters")
    create.add_argument(
        "--permissions",
        required=True,
        type=_permissions,
        metavar="P1,P2",
        help=f"some of {', '.join(PERMISSIONS)}".replace("%", "%%"),
    )
    create.add_argument(
        "--expires-in", type=durations.parse, metavar="90d", help="30m, 2h or 90d (default: the key does not expire)"
    )
    create.set_defaults(action=_create)
    add_json(create)
    listing = actions.add_parser("list", help="list keys, newest first, without their texts")
    listing.set_defaults(action=_list)
    pages.configure(listing)
    revoke = actions.add_parser("revoke", help="revoke a key for ever")
    revoke.add_argument("id", metavar="ID", help="the id of the key, as `list` shows it")
    revoke.set_defaults(action=_revoke)
    add_json(revoke)
    for action in (create, listing, revoke):
        target.add_apis(action)


def run(options: argparse.Namespace) -> int:
    """Run the action. Raises the ShopError of the API."""
    with target.shop(options) as shop:
        options.action(shop, options)
    return 0


def _create(shop: Shop, options: argparse.Namespace) -> None:
    request = CreateApiKeyRequest(name=options.name, permissions=options.permissions)
    if options.expires_in is not None:
        request.expires_in.FromTimedelta(options.expires_in)
    created = shop.call(shop.api_keys.CreateApiKey, request)
    if options.json:
        print_json(as_row(created.api_key) | {"key": created.key})
        return
    print(created.key)
    # The text of the key alone is on standard output, so that a script can store it.
    note = error_console()
    note.print(f"Store the key of {options.name!r} (id {created.api_key.id}) now: nobody can read it again.")
    note.print(f"All processes accept it within {USABLE_SECONDS} seconds.", style="dim")


def _list(shop: Shop, options: argparse.Namespace) -> None:
    def page(size: int, token: str) -> tuple[list[ApiKey], str]:
        response = shop.call(shop.api_keys.ListApiKeys, ListApiKeysRequest(page_size=size, page_token=token))
        return list(response.api_keys), response.next_page_token

    columns: list[str | Column] = [
        *(whole("id"), "name", "state", "permissions"),
        *("created_at", "expires_at", "revoked_at", "last_used_at"),
    ]
    rows = (as_row(key) for key in pages.fetch_rows(options, page))
    if not options.json:
        rows = (row | {"permissions": ", ".join(row["permissions"])} for row in rows)
    pages.show(options, "API keys", columns, rows)


def _revoke(shop: Shop, options: argparse.Namespace) -> None:
    revoked = shop.call(shop.api_keys.RevokeApiKey, RevokeApiKeyRequest(id=options.id)).api_key
    if options.json:
        print_json(as_row(revoked))
    else:
        print(f"{revoked.name!r} (id {revoked.id}) is revoked; all processes refuse it within {USABLE_SECONDS} seconds")


def as_row(key: ApiKey) -> dict[str, Any]:
    """Return a key as a row with the API's field names. `state` is `valid`, `expired` or `revoked`."""
    times = {name: _time(key, name) for name in ("created_at", "expires_at", "revoked_at", "last_used_at")}
    return {
        "id": key.id,
        "name": key.name,
        "state": _state(times["expires_at"], times["revoked_at"]),
        "permissions": list(key.permissions),
        **times,
    }


def _state(expires_at: datetime | None, revoked_at: datetime | None) -> str:
    if revoked_at is not None:
        return "revoked"
    return "expired" if expires_at is not None and expires_at <= datetime.now(UTC) else "valid"


def _time(key: ApiKey, name: str) -> datetime | None:
    message: Message = key
    return to_datetime(getattr(key, name)) if message.HasField(name) else None


def _permissions(text: str) -> list[str]:
    permissions = [name.strip() for name in text.split(",")]
    unknown = [name for name in permissions if name not in PERMISSIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)!r} is not a permission: {', '.join(PERMISSIONS)}")
    return permissions
