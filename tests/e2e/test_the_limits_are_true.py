"""The numbers in docs/limits.md are those in the code."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from order_api.settings import OrderSettings

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
_NUMBER = re.compile(r"(\d[\d,]*)( MB)?")
_CODE = re.compile(r"`([^`]+)`")
_MEGABYTE = 1024 * 1024


def documented_limits() -> list[tuple[str, float]]:
    """(setting or constant, number) for each limit that the page names."""
    found: list[tuple[str, float]] = []
    for line in PAGE.read_text().splitlines():
        cells = line.strip("| ").split(" | ")
        names = _CODE.findall(cells[-1])
        if not line.startswith("| ") or not names:
            continue
        # If a row has two names, the second number is after the first one or in the column of the caller's error.
        numbers = _NUMBER.findall(_CODE.sub("", " ".join(cells[1:-1])))
        values = [float(number.replace(",", "")) * (_MEGABYTE if unit else 1) for number, unit in numbers]
        if values:  # a row without a number derives its limit from another
            found += zip(names, values, strict=True)
    return found


def test_the_page_has_rows() -> None:
    assert len(documented_limits()) > 20


@pytest.mark.parametrize(("name", "number"), documented_limits())
def test_a_documented_limit_is_the_one_in_the_code(name: str, number: float) -> None:
    module, _, constant = name.rpartition(".")
    value = getattr(import_module(module), constant) if module else OrderSettings.model_fields[name.lower()].default

    assert value == number
