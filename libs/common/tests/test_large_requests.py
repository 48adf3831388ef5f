"""Large requests of one caller leave room for those of other callers."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import copy_context

import pytest

from shop_common.errors import QueueFull
from shop_common.identity.caller import Caller
from shop_common.identity.current import set_caller
from shop_common.rpc.large_requests import WORKED_ON_BYTES_MAX, LargeRequests
from shop_common.rpc.switch_interval import SHARED_SWITCH_SECONDS

SIZE = WORKED_ON_BYTES_MAX // 5


@contextmanager
def in_progress(requests: LargeRequests, name: str) -> Iterator[None]:
    """Process a request of this caller during the block. It must not have to wait."""
    context = copy_context()
    context.run(set_caller, Caller(name, frozenset()))
    turn = requests.turn(SIZE, 0)
    context.run(turn.__enter__)
    try:
        yield
    finally:
        context.run(turn.__exit__, None, None, None)


def test_beside_others_a_caller_has_one_large_request_in_progress() -> None:
    requests = LargeRequests(lambda: True)
    with in_progress(requests, "large"):
        with pytest.raises(QueueFull), in_progress(requests, "large"):
            pass
        with in_progress(requests, "small"):
            pass
    with in_progress(requests, "large"):
        pass


def test_a_caller_alone_has_all_of_them() -> None:
    requests = LargeRequests(lambda: False)
    with ExitStack() as stack:
        for _ in range(WORKED_ON_BYTES_MAX // SIZE):
            stack.enter_context(in_progress(requests, "large"))
        with pytest.raises(QueueFull), in_progress(requests, "large"):
            pass


def test_only_beside_others_a_large_request_shortens_the_switch_interval() -> None:
    normal = sys.getswitchinterval()
    assert normal > SHARED_SWITCH_SECONDS

    with in_progress(LargeRequests(lambda: True), "large"):
        assert sys.getswitchinterval() == pytest.approx(SHARED_SWITCH_SECONDS)
    with in_progress(LargeRequests(lambda: False), "large"):
        assert sys.getswitchinterval() == normal
