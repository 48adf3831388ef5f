"""Which system a command uses when no system runs on this machine."""

import argparse
from pathlib import Path

import pytest

from shopctl.system import target
from shopctl.system.runfile import NotRunning

NO_OPTIONS = argparse.Namespace(inventory=None, orders=None)


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither dev nor containers run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("INVENTORY_TARGET", "ORDER_TARGET", "TLS_CA_PATH", "TLS_CERT_PATH", "TLS_KEY_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_the_settings_name_the_apis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVENTORY_TARGET", "inventory-api:50053")
    monkeypatch.setenv("ORDER_TARGET", "order-api:50054")

    assert target.apis(NO_OPTIONS) == ("inventory-api:50053", "order-api:50054")
    assert target.certificates(NO_OPTIONS) is None


def test_an_option_replaces_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVENTORY_TARGET", "inventory-api:50053")
    options = argparse.Namespace(inventory=None, orders="elsewhere:50054")

    assert target.apis(options) == ("localhost:50053", "elsewhere:50054")


def test_without_a_setting_the_system_is_not_running() -> None:
    with pytest.raises(NotRunning):
        target.apis(NO_OPTIONS)
