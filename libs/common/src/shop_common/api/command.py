"""The base of all commands: the fields that every request for a change has."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from shop_common.identity.caller import ANYONE, Caller


class Cause(NamedTuple):
    """The cause of an event: the trace and the actor of the call that made the change. Both may be unknown.

    If a change of an order caused the change, `order_version` is the version that the order got by it.
    """

    traceparent: str | None = None
    actor: str | None = None
    order_version: int | None = None


UNKNOWN_CAUSE = Cause()


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A parsed request for a change.

    `request_id` makes the command safe to repeat; it is None if the caller sent none. `traceparent` links the events
    of the change to the caller's trace. Commands that differ only in `traceparent` are equal. The change concerns data
    of the caller's tenant only. `calls` is the number of equal calls that the coalescer folded into this command.
    """

    caller: Caller = ANYONE

    request_id: str | None = None
    traceparent: str | None = field(default=None, compare=False)
    calls: int = field(default=1, compare=False)

    @property
    def cause(self) -> Cause:
        """The cause of the events of the change."""
        return Cause(self.traceparent, self.caller.actor)

    @property
    def tenant(self) -> str:
        return self.caller.tenant

    def folded(self, calls: int) -> Self:
        """Return a copy of this command that stands for `calls` equal calls."""
        return replace(self, calls=calls)
