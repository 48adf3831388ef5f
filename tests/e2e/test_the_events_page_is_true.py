"""docs/events.md lists the topics, types and headers of the contract, proto/asyncapi.yaml."""

import re
from pathlib import Path

import pytest
import yaml

from testkit.contract import ASYNCAPI

PAGE = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
CONTRACT = yaml.safe_load(ASYNCAPI.read_text())


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("Topics", CONTRACT["channels"].keys()),
        ("Types", CONTRACT["components"]["messages"].keys() - {"DEAD_LETTER"}),
        ("Headers", CONTRACT["components"]["schemas"]["Headers"]["properties"].keys()),
    ],
)
def test_a_table_of_the_page_has_exactly_the_names_of_the_contract(section: str, names: set[str]) -> None:
    body = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]

    assert set(re.findall(r"^\| `([^`]+)`", body, re.MULTILINE)) == set(names)
