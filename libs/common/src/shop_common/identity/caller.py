"""The caller of a call, and its permissions."""

from dataclasses import dataclass, field, replace

from shop_common.identity.errors import PermissionMissing
from shop_common.identity.rate import Rate
from shop_common.identity.rules import DELEGATE, ORDERS_ANY, PERMISSIONS
from shop_common.identity.tenant import DEFAULT

_USER_ID_MAX = 2**63 - 1


def user_name(subject: str) -> str:
    """Return the name of a caller that is the user with this subject."""
    return f"user:{subject}"


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller.

    `name` is unique among the callers of a tenant: a SPIFFE id, or `user:` and the subject of a token. `subject` is the
    user to whom the token was issued, or for whom a delegate acts, or else None. The call reads and changes data of
    `tenant` only, unless it is maintenance. `rate` limits the lines that the caller may send; None is no limit.
    """

    name: str
    permissions: frozenset[str]
    subject: str | None = None
    tenant: str = DEFAULT
    rate: Rate | None = field(default=None, compare=False)

    def require(self, permission: str) -> None:
        """Raise PermissionMissing if the caller does not have the permission."""
        if permission not in self.permissions:
            raise PermissionMissing(permission, self.name, self.tenant)

    def require_user(self, user_id: int) -> None:
        """Raise PermissionMissing if the caller may not act for this user."""
        if self.owner not in (None, user_id):
            raise PermissionMissing(ORDERS_ANY, self.name, self.tenant)

    def acting_for(self, tenant: str, subject: str | None) -> "Caller":
        """Return this caller, acting for a user of a tenant. Raises PermissionMissing if it may not.

        If identities are not checked, there is only the default tenant.
        """
        self.require(DELEGATE)
        if self.name == ANYONE.name and tenant != DEFAULT:
            raise PermissionMissing(DELEGATE, self.name, self.tenant)
        return replace(self, tenant=tenant, subject=subject)

    @property
    def actor(self) -> str | None:
        """The name that events have for the cause of the caller's changes. None if identities are not checked.

        It is the caller's name, or `user:` and the subject if a delegate acts for a user.
        """
        if self.name == ANYONE.name:
            return None
        return user_name(self.subject) if self.subject and DELEGATE in self.permissions else self.name

    @property
    def reservation_owner(self) -> str:
        """The owner of the reservations that the caller makes. Only their owner can confirm or release them.

        Empty for order-api, the only service with the permission to act for others. Also empty for everyone if
        identities are not checked.
        """
        return "" if DELEGATE in self.permissions else self.name

    @property
    def owner(self) -> int | None:
        """The id of the user whose orders the caller may access, or None if the caller may access all orders.

        Raises PermissionMissing if the caller may not access all orders and its subject is not a valid user id.
        """
        if ORDERS_ANY in self.permissions:
            return None
        subject = self.subject or ""
        if subject.isascii() and subject.isdigit() and len(subject) < 20 and 0 < int(subject) <= _USER_ID_MAX:
            return int(subject)
        raise PermissionMissing(ORDERS_ANY, self.name, self.tenant)


ANYONE = Caller("anyone", frozenset(PERMISSIONS))
"""The caller of every call if identities are not checked. It has all permissions, and its tenant is the default."""
