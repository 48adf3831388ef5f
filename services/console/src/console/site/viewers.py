"""Viewers: whose credentials a page uses, and what they may do."""

import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Self

from console.settings import ConsoleSettings
from shop_client import AsyncShop
from shop_common.identity.caller import ANYONE

SESSION_SECONDS = 8 * 3600
SESSIONS_MAX = 200


@dataclass(frozen=True)
class Permissions:
    """What the viewer may do. It decides what a page shows and offers; the APIs check each call."""

    change_orders: bool
    change_stock: bool
    read_all_orders: bool
    read_stock: bool
    administer: bool

    @classmethod
    def of(cls, permissions: Collection[str]) -> Self:
        """Return what a caller with these permissions of the APIs may do."""
        return cls(
            change_orders="orders.write" in permissions,
            change_stock="inventory.write" in permissions,
            read_all_orders={"orders.read", "orders.any"} <= {*permissions},
            read_stock="inventory.read" in permissions,
            administer="admin" in permissions,
        )


EVERYTHING = Permissions(change_orders=True, change_stock=True, read_all_orders=True, read_stock=True, administer=True)


@dataclass(eq=False)
class Viewer:
    """A person who looks. `shop` calls the APIs with this person's credentials, and with no others.

    Each session has its own connections, so that one viewer's token can never be sent with another viewer's call.
    """

    id: str
    shop: AsyncShop
    may: Permissions
    name: str = ANYONE.name
    tenant: str = ANYONE.tenant
    ends_at: float = field(default=float("inf"))
    is_signed_out: bool = False

    @property
    def is_active(self) -> bool:
        return not self.is_signed_out and time.monotonic() < self.ends_at


class Viewers:
    """The sessions, in memory only: a restart signs everybody out. Use it from the event loop only."""

    def __init__(self, settings: ConsoleSettings) -> None:
        self._settings = settings
        self.sign_in_required = settings.sign_in
        self._sessions: dict[str, Viewer] = {}
        self._everyone: Viewer | None = None

    def of(self, session_id: str | None) -> Viewer | None:
        """Return the viewer of a session, or None if it must sign in. Without SIGN_IN, all sessions have one viewer."""
        if not self.sign_in_required:
            if self._everyone is None:
                self._everyone = Viewer("everyone", AsyncShop(self._settings.client("")), EVERYTHING)
            return self._everyone
        viewer = self._sessions.get(session_id or "")
        return viewer if viewer is not None and viewer.is_active else None

    async def sign_in(self, token: str) -> str:
        """Start a session for the owner of an API key or a token. Returns its id.

        Raises Unauthenticated if the APIs refuse the token, or another ShopError if they cannot check it.
        """
        shop = AsyncShop(self._settings.client(token))
        try:
            caller = await shop.get_caller()
        except BaseException:
            await shop.close()
            raise
        await self._drop_ended()
        if len(self._sessions) >= SESSIONS_MAX:
            await self.sign_out(next(iter(self._sessions)))
        session_id = secrets.token_urlsafe(32)
        self._sessions[session_id] = Viewer(
            secrets.token_hex(8),
            shop,
            Permissions.of(caller.permissions),
            caller.name,
            caller.tenant,
            ends_at=time.monotonic() + SESSION_SECONDS,
        )
        return session_id

    async def sign_out(self, session_id: str | None) -> None:
        """End a session and forget its token. May be repeated."""
        viewer = self._sessions.pop(session_id or "", None)
        if viewer is not None:
            viewer.is_signed_out = True
            await viewer.shop.close()

    async def _drop_ended(self) -> None:
        for session_id in [each for each, viewer in self._sessions.items() if not viewer.is_active]:
            await self.sign_out(session_id)
