"""The log messages and metrics that the runbook quotes exist in the source."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path.read_text()
    for folder in (
        "libs/common/src",
        "services/event-relay/src",
        "services/inventory-api/src",
        "services/order-api/src",
    )
    for path in (ROOT / folder).rglob("*.py")
]


def quoted() -> list[str]:
    """The log messages and metric names that the section Kafka quotes."""
    section = (ROOT / "docs" / "runbook.md").read_text().partition("\n## Kafka")[2].partition("\n## ")[0]
    entries = re.findall(r"^- (?:Logs|Health and metrics): (.*?)(?=^- )", section, re.DOTALL | re.MULTILINE)
    return sorted({text for entry in entries for text in re.findall(r"`([^`]+)`", entry)})


def test_the_runbook_quotes_something() -> None:
    assert len(quoted()) > 15


@pytest.mark.parametrize("text", quoted())
def test_a_message_or_metric_of_the_runbook_is_in_the_source(text: str) -> None:
    # prometheus_client adds _total to a counter's name. In the source, a setting is a field in lower case.
    forms = {text, text.removesuffix("_total"), text.lower()}

    assert any(form in source for source in SOURCES for form in forms)
