"""docs/limits.md says the numbers that the code has."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from order_api.settings import OrderSettings

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
_ROW = re.compile(r"^\| (?P<what>[^|]+) \| (?P<value>[^|]*\d[^|]*) \|(?:.*\|)? (?P<names>`[^|]+`) \|$", re.MULTILINE)
_NUMBER = re.compile(r"\d[\d,]*")


def said() -> list[tuple[str, float]]:
    """Each setting or constant that the page names, with its number there."""
    found = []
    for row in _ROW.finditer(PAGE.read_text()):
        names = re.findall(r"`([\w.]+)`", row["names"])
        # A row with two names has the second number in its second column, or in what the caller is told.
        numbers = _NUMBER.findall(row[0].removeprefix(f"| {row['what']} |").replace(row["names"], ""))
        found += [(name, float(number.replace(",", ""))) for name, number in zip(names, numbers, strict=True)]
    return found


def test_the_page_has_all_of_its_rows() -> None:
    assert len(said()) == len(re.findall(r"^\| .*\d.* \|$", PAGE.read_text(), re.MULTILINE)) + 3


@pytest.mark.parametrize(("name", "number"), said())
def test_a_limit_is_as_the_page_says(name: str, number: float) -> None:
    module, _, constant = name.rpartition(".")
    value = getattr(import_module(module), constant) if module else OrderSettings.model_fields[name.lower()].default

    assert value == number
