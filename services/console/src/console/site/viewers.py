"""Viewers: whose credentials a page uses, and what they may do."""

import secrets
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field

from console.settings import ConsoleSettings
from shop_client import AsyncShop
from shop_client.errors import InvalidInput, PermissionDenied
from shop_client.values import OrderStatus

SESSION_SECONDS = 8 * 3600
SESSIONS_MAX = 200


@dataclass(frozen=True)
class Permissions:
    """The actions that the APIs allow the viewer."""

    change_orders: bool
    change_stock: bool


EVERYTHING = Permissions(change_orders=True, change_stock=True)


@dataclass(eq=False)
class Viewer:
    """A person who looks. `shop` calls the APIs with this person's credentials, and with no others.

    Each session has its own connections, so that one viewer's token can never be sent with another viewer's call.
    """

    id: str
    shop: AsyncShop
    may: Permissions
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
        """Return the viewer of a session, or None if the viewer must sign in. Without SIGN_IN, all are one viewer."""
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
            may = await permissions(shop)
        except BaseException:
            await shop.close()
            raise
        await self._drop_ended()
        if len(self._sessions) >= SESSIONS_MAX:
            await self.sign_out(next(iter(self._sessions)))
        session_id = secrets.token_urlsafe(32)
        self._sessions[session_id] = Viewer(secrets.token_hex(8), shop, may, ends_at=time.monotonic() + SESSION_SECONDS)
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


async def permissions(shop: AsyncShop) -> Permissions:
    """Return what the APIs allow the caller. Raises ShopError if they cannot check the caller.

    The APIs check the permission before they read the request. So a request that is invalid in every state shows
    whether the caller has the permission, and changes nothing.
    """
    return Permissions(
        change_orders=await _is_allowed(shop.update_order_status("", OrderStatus.CANCELLED)),
        change_stock=await _is_allowed(shop.add_stock(0, 0)),
    )


async def _is_allowed(call: Awaitable[object]) -> bool:
    try:
        await call
    except PermissionDenied:
        return False
    except InvalidInput:
        return True
    return True
