"""The switch interval is short while large requests run beside calls of other callers."""

import sys
from collections.abc import Iterator

import pytest

from shop_common.rpc.switch_interval import SHARED_SWITCH_SECONDS, shortened

NORMAL_SECONDS = 0.03125
"""A number that the interpreter stores exactly."""


@pytest.fixture(autouse=True)
def normal() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(NORMAL_SECONDS)
    yield
    sys.setswitchinterval(before)


def test_the_interval_is_restored_after_the_last_block() -> None:
    seen = []
    with shortened():
        with shortened():
            seen.append(sys.getswitchinterval())
        seen.append(sys.getswitchinterval())

    assert seen == pytest.approx([SHARED_SWITCH_SECONDS] * 2)
    assert sys.getswitchinterval() == NORMAL_SECONDS


def test_the_interval_is_restored_after_an_error() -> None:
    with pytest.raises(ValueError, match="failed"), shortened():
        raise ValueError("failed")

    assert sys.getswitchinterval() == NORMAL_SECONDS


def test_an_interval_that_is_shorter_already_stays() -> None:
    sys.setswitchinterval(SHARED_SWITCH_SECONDS / 2)

    with shortened():
        assert sys.getswitchinterval() == pytest.approx(SHARED_SWITCH_SECONDS / 2)
