"""What the runbook quotes of logs and metrics is what the programs say."""

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
    """The log lines and the names of metrics that the section Kafka quotes."""
    section = (ROOT / "docs" / "runbook.md").read_text().partition("\n## Kafka")[2].partition("\n## ")[0]
    entries = re.findall(r"^- (?:Logs|Health and metrics): (.*?)(?=^- )", section, re.DOTALL | re.MULTILINE)
    return sorted({words for entry in entries for words in re.findall(r"`([^`]+)`", entry)})


def test_the_runbook_quotes_something() -> None:
    assert len(quoted()) > 15


@pytest.mark.parametrize("words", quoted())
def test_a_line_or_metric_of_the_runbook_is_in_the_programs(words: str) -> None:
    # Prometheus puts _total behind a counter's name, settings are fields in lower case.
    wanted = {words, words.removesuffix("_total"), words.lower()}

    assert any(form in source for source in SOURCES for form in wanted)
