"""The caller of the call that the current thread runs."""

from contextvars import ContextVar

from shop_common.identity.caller import ANYONE, Caller

_caller: ContextVar[Caller] = ContextVar("caller", default=ANYONE)


def caller() -> Caller:
    """Return the caller of the call that this thread runs.

    Returns ANYONE if identities are not checked, and in threads that run no call.
    """
    return _caller.get()


def set_caller(caller: Caller) -> None:
    """Set the caller of the call that this thread runs."""
    _caller.set(caller)
