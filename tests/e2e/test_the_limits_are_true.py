"""docs/limits.md says the numbers that the code has."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from order_api.settings import OrderSettings

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
_NUMBER = re.compile(r"(\d[\d,]*)( MB)?")
_CODE = re.compile(r"`([^`]+)`")
_MEGABYTE = 1024 * 1024


def said() -> list[tuple[str, float]]:
    """Each setting or constant that the page names, with its number there."""
    found: list[tuple[str, float]] = []
    for line in PAGE.read_text().splitlines():
        cells = line.strip("| ").split(" | ")
        names = _CODE.findall(cells[-1])
        if not line.startswith("| ") or not names:
            continue
        # A row with two names has the second number behind the first, or in what the caller is told.
        numbers = _NUMBER.findall(_CODE.sub("", " ".join(cells[1:-1])))
        values = [float(number.replace(",", "")) * (_MEGABYTE if unit else 1) for number, unit in numbers]
        if values:  # else it says how it follows from another
            found += zip(names, values, strict=True)
    return found


def test_the_page_has_rows() -> None:
    assert len(said()) > 20


@pytest.mark.parametrize(("name", "number"), said())
def test_a_limit_is_as_the_page_says(name: str, number: float) -> None:
    module, _, constant = name.rpartition(".")
    value = getattr(import_module(module), constant) if module else OrderSettings.model_fields[name.lower()].default

    assert value == number
