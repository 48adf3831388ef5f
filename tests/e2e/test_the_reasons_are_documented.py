"""Every reason of an error is in README's table, and in the comments of the protos, which are the reference of the API.

Another test compares the reasons of README with the errors of the Python client.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import inventory_api
import order_api
import shop_common
from shop_common.errors import ShopError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (shop_common, inventory_api, order_api)
OURS = {package.__name__ for package in PACKAGES}


def test_every_reason_is_in_the_readme(reasons: set[str]) -> None:
    section = (ROOT / "README.md").read_text().partition("## Errors and retries")[2].partition("\n## ")[0]

    assert sorted(reason for reason in reasons if f"`{reason}`" not in section) == []


def test_every_reason_is_in_the_protos(reasons: set[str]) -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "proto" / "shop").rglob("*.proto"))
    comments = "\n".join(re.findall(r"//(.*)", text))

    assert sorted(reason for reason in reasons if not re.search(rf"\b{reason}\b", comments)) == []


@pytest.fixture(scope="module")
def reasons() -> set[str]:
    """The reasons of all error classes of both APIs, and of the one status that has no class."""
    for package in PACKAGES:
        _import_all(package)
    # Other tests define errors of their own.
    ours = [kind for kind in _subclasses(ShopError) if kind.__module__.partition(".")[0] in OURS]
    found = {kind.reason for kind in ours if hasattr(kind, "reason")} | {"ANSWER_TOO_LARGE"}
    assert {"INSUFFICIENT_STOCK", "ORDER_NOT_FOUND", "RATE_LIMITED"} <= found
    return found


def _import_all(package: ModuleType) -> None:
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not re.search(r"\.(__main__|migrations)(\.|$)", module.name):
            importlib.import_module(module.name)


def _subclasses(kind: type[ShopError]) -> Iterator[type[ShopError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)
