"""Checks that each view fits its screen and is accessible, and takes its picture."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.eventually import eventually
from tests.console import axe
from tests.console.browser import DESKTOP, PHONE, Browser

PICTURES_VARIABLE = "TEST_PICTURES"


def sizes(page: Browser) -> Iterator[int]:
    """Give the page each size in turn, the phone's with a dark page. Yields the width."""
    for (width, height), dark in ((DESKTOP, False), (PHONE, True)):
        page.resize(width, height, dark=dark)
        yield width


def check(page: Browser, name: str, width: int, folder: Path) -> None:
    """Check the open page, and store its picture in the folder, or in that of TEST_PICTURES."""

    def needed() -> int:
        return int(page.driver.execute_script("return document.documentElement.scrollWidth"))

    # A page may be wider for a moment, while it changes to the styles of the phone.
    eventually(lambda: needed() <= width, 20, lambda: f"{name} needs {needed()} pixels of {width}")
    pictures = Path(os.environ.get(PICTURES_VARIABLE, folder))
    page.driver.save_screenshot(str(pictures / f"console-{name}-{width}.png"))
    if axe.script() is not None:
        assert axe.serious_findings(page.driver) == [], (name, width)


def skip_without_axe() -> None:
    """Skip the test after its other checks, and say so, if the accessibility was not checked."""
    if axe.script() is None:
        pytest.skip("axe-core is not available, so only the sizes were checked (it comes with npm)")
