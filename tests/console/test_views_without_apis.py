"""The views of logs and settings in a real browser. They call no API, so the console runs alone."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack.ports import free_ports
from devstack.process import Process
from shopctl.system.log_book import LogBook
from testkit.eventually import eventually
from tests.console import browser, views
from tests.console.browser import Browser

_START_SECONDS = 180


def _fail(error: OSError) -> None:
    raise error


@pytest.fixture(scope="module")
def logs_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs") / "logs.jsonl"


@pytest.fixture(scope="module")
def book(logs_path: Path) -> Iterator[LogBook]:
    with LogBook.opened(_fail, logs_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def address(chromium: None, logs_path: Path) -> Iterator[str]:
    """A console that watches itself under the name order-api, and a relay that is not there."""
    http, health, metrics, nobody = free_ports(4)
    environment = {
        "METRICS_PORT": str(metrics),
        "PROCESSES": f"order-api=localhost:{health}/localhost:{metrics},event-relay=localhost:{nobody}/[::1]:{nobody}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://user:hunter2@localhost:{nobody}",
        "HTTP_PORT": str(http),
        "HEALTH_PORT": str(health),
        "LOGS_PATH": str(logs_path),
        "GRACE_SECONDS": "1",
    }
    process = Process("console", [sys.executable, "-m", "console"], environment, health_address=f"127.0.0.1:{health}")
    process.start()
    try:
        process.wait_ready(_START_SECONDS)
        yield f"http://localhost:{http}"
    finally:
        assert process.stop(30) == 0


@pytest.fixture
def page(address: str, tmp_path: Path) -> Iterator[Browser]:
    with browser.running(address, tmp_path / "profile") as running:
        running.resize(*browser.DESKTOP)
        yield running


def test_new_lines_appear_at_the_end_and_the_view_follows_them(page: Browser, book: LogBook) -> None:
    page.open("/logs")
    for number in range(100):
        book.add("order-api", f"line {number} <b>of</b> many")
    page.sees("line 99 <b>of</b> many")

    shown = page.text()

    assert shown.index("line 98 ") < shown.index("line 99 ")
    last = "return document.querySelector('.logs li:last-child').getBoundingClientRect().bottom"
    end = "return document.querySelector('.newest').getBoundingClientRect().bottom"
    eventually(lambda: page.driver.execute_script(last) <= page.driver.execute_script(end) + 1)
    assert page.errors() == []


def test_the_filters_are_part_of_the_address(page: Browser, book: LogBook) -> None:
    book.add("event-relay", "the broker is away", level="error")
    book.add("event-relay", "the broker is back", level="info")
    page.open("/logs?process=event-relay&level=warning")
    page.sees("the broker is away")
    assert "the broker is back" not in page.text()

    page.fill("Contains", "nothing like this")
    page.click("Filter")

    page.sees("No line matches the filter")
    assert "level=warning&contains=nothing+like+this" in page.driver.current_url


def test_the_settings_of_each_process_are_shown_without_secrets(page: Browser, logs_path: Path) -> None:
    page.open("/settings")
    page.sees("The process does not respond on its metrics port")

    shown = page.text()

    # The view has the settings of this console and of one that was asked on its metrics port.
    assert shown.count(str(logs_path)) == 2
    assert "http://(hidden)@localhost" in shown
    assert "hunter2" not in page.driver.page_source
    assert page.errors() == []


def test_each_view_fits_its_screen_and_is_accessible(page: Browser, book: LogBook, tmp_path: Path) -> None:
    book.add("inventory-api", "12:30:00.000000 [info     ] serving port=50053 version=1.0.0 health_port=50063")
    book.add("order-api", "12:30:00.000000 [warning  ] slow work=confirm seconds=2.5 trace_id=4bf92f3577b34da6a3ce929d")
    book.add("reservation-reaper", "12:30:00.000000 [error    ] cannot expire reservations error=" + "x" * 300)
    for width in views.sizes(page):
        for view, content in (("logs", "cannot expire reservations"), ("settings", "does not respond")):
            page.open(f"/{view}")
            page.sees(content)
            views.check(page, view, width, tmp_path)
    views.skip_without_axe()
