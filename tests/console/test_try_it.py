"""The view to try out failures, in a real browser, in front of processes that are started again as by `dev`."""

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from devstack import kafka as kafka_brokers
from devstack.dev.supervisor import Supervisor
from devstack.stack import Databases, Options, Ports, Stack
from shopctl.system import runfile
from shopctl.system.layout import CONSOLE, ORDER_API, RELAY
from shopctl.system.runfile import Endpoint, RunFile
from testkit.eventually import eventually
from tests.console import browser, views
from tests.console.browser import Browser


@pytest.fixture(scope="module")
def stack(chromium: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A system that is supervised, with its run file, as `dev` has it."""
    folder = tmp_path_factory.mktemp("try-it")
    path = folder / "devstack.json"
    options = Options(per_process={CONSOLE: {"RUN_FILE_PATH": str(path)}}, has_console=True)
    with (
        kafka_brokers.provide(containers=False) as broker,
        Stack(Databases.in_folder(folder), broker, Ports.free(metrics=True), options) as running,
    ):

        def write() -> None:
            me = psutil.Process(os.getpid())
            endpoints = {
                process.name: Endpoint(process.pid, "", None, process.health_address or "")
                for process in running.processes
            }
            runfile.write(RunFile(me.pid, me.create_time(), broker.bootstrap, running.databases, endpoints), path)

        write()
        ended = threading.Event()
        supervisor = Supervisor(running.processes, lambda _: None, lambda _: None, started=write)
        thread = threading.Thread(target=supervisor.run, args=[lambda: not ended.is_set()])
        thread.start()
        try:
            yield running
        finally:
            ended.set()
            thread.join()
            for process in running.processes:
                process.thaw()


@pytest.fixture
def page(stack: Stack, tmp_path: Path) -> Iterator[Browser]:
    with browser.running(f"http://localhost:{stack.ports.console}", tmp_path / "profile") as running:
        running.resize(*browser.DESKTOP)
        running.open("/try")
        running.sees("Kill")
        eventually(lambda: running.state_of(RELAY) == "ready")
        yield running


def test_a_killed_process_is_started_again(stack: Stack, page: Browser) -> None:
    before = stack.relay.pid

    page.act(f"Kill {RELAY}", f"Kill {RELAY}")

    eventually(lambda: stack.relay.pid != before)
    eventually(lambda: page.state_of(RELAY) == "ready", describe=page.text)
    assert page.errors() == []


def test_a_restarted_process_ends_gracefully(stack: Stack, page: Browser) -> None:
    before = psutil.Process(stack.order_api.pid)

    page.act(f"Restart {ORDER_API}", f"Restart {ORDER_API}")

    eventually(lambda: not before.is_running())
    eventually(lambda: page.state_of(ORDER_API) == "ready", describe=page.text)


def test_a_frozen_process_goes_on_when_it_is_thawed(stack: Stack, page: Browser) -> None:
    page.act(f"Freeze {RELAY}", f"Freeze {RELAY}")
    eventually(lambda: page.state_of(RELAY) == "frozen", describe=page.text)

    page.act(f"Thaw {RELAY}", f"Thaw {RELAY}")

    eventually(lambda: page.state_of(RELAY) == "ready", describe=page.text)


def test_nothing_is_lost_when_a_process_is_killed_under_load(stack: Stack, page: Browser) -> None:
    page.slide(3)
    eventually(lambda: _number(page, r"([\d,]+) orders; ") or _number(page, r"all ([\d,]+) orders"), describe=page.text)

    page.act(f"Kill {RELAY}", f"Kill {RELAY}")

    eventually(lambda: page.state_of(RELAY) == "ready", describe=page.text)
    page.slide(0)
    page.sees("Now 0 orders per second")
    page.sees("orders have come")
    page.sees("all numbers agree")
    page.sees("0 units oversold")
    page.sees("0 events lost")
    assert page.errors() == []


def _number(page: Browser, pattern: str) -> int | None:
    found = re.search(pattern, page.text())
    return int(found[1].replace(",", "")) if found else None


def test_the_view_fits_its_screen_and_is_accessible(page: Browser, tmp_path: Path) -> None:
    for width in views.sizes(page):
        page.open("/try")
        eventually(lambda: page.state_of(RELAY) == "ready", describe=page.text)
        views.check(page, "try-it", width, tmp_path)
    views.skip_without_axe()
