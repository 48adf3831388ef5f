"""The caller of a call, and its permissions."""

from dataclasses import dataclass

from shop_common.identity.errors import PermissionMissing
from shop_common.identity.rules import ORDERS_ANY, PERMISSIONS

_USER_ID_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller.

    `name` is unique among callers: a SPIFFE id, or `user:` and the subject of a token. `subject` is the user to whom
    the token was issued, or None for a workload.
    """

    name: str
    permissions: frozenset[str]
    subject: str | None = None

    def require(self, permission: str) -> None:
        """Raise PermissionMissing if the caller does not have the permission."""
        if permission not in self.permissions:
            raise PermissionMissing(permission)

    def require_user(self, user_id: int) -> None:
        """Raise PermissionMissing if the caller may not act for this user."""
        if self.owner not in (None, user_id):
            raise PermissionMissing(ORDERS_ANY)

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
        raise PermissionMissing(ORDERS_ANY)


ANYONE = Caller("anyone", frozenset(PERMISSIONS))
"""The caller of every call if identities are not checked. It has all permissions."""
