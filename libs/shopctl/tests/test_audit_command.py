"""`audit` shows the audit logs of both databases as one, and `audit-purge` deletes old rows."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, insert

from shop_common.db.address import sqlite_url
from shop_common.db.audit import AuditLog
from shop_common.db.database import Database
from shopctl.data import audit_log
from testkit.tasks import main

METADATA = MetaData()
TABLE = AuditLog(METADATA).table
NOW = datetime.now(UTC).replace(microsecond=0)
Audit = Callable[[str], list[dict[str, Any]]]


def fill(url: str, ages: Sequence[timedelta], **values: str) -> None:
    """Create the audit log of a database, with a row of each age. Ids are the ages in seconds."""
    database = Database(url)
    with database.write() as tx:
        METADATA.create_all(tx)
        for age in ages:
            resources = json.dumps([str(int(age.total_seconds()))])
            tx.execute(insert(TABLE).values(**{"at": NOW - age, "resources": resources, **values}))
    database.close()


@pytest.fixture
def urls(database_url: str, tmp_path: Path) -> list[str]:
    """The options of two databases: the orders are on SQLite and on PostgreSQL."""
    inventory = sqlite_url(tmp_path / "other.db")
    fill(inventory, [timedelta(minutes=2 * n) for n in range(20)], caller="key:k1", method="ReserveStock")
    orders = [timedelta(minutes=2 * n + 1) for n in range(20)]
    fill(database_url, orders, caller="user:7", method="CreateOrder", tenant="acme", request_id="r", subject="7")
    return ["--inventory-url", inventory, "--orders-url", database_url]


@pytest.fixture
def audit(urls: list[str], capsys: pytest.CaptureFixture[str]) -> Audit:
    def run(options: str) -> list[dict[str, Any]]:
        assert main(["audit", *urls, "--json", *options.split()]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_rows_of_both_databases_are_shown_newest_first(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "PAGE_ROWS", 3)  # so that there are several pages

    shown = audit("--all")

    assert [row["resources"] for row in shown] == [[str(60 * minute)] for minute in range(40)]
    assert shown[1] == {
        "at": (NOW - timedelta(minutes=1)).isoformat().replace("+00:00", "Z"),
        "service": "order-api",
        "tenant": "acme",
        "caller": "user:7",
        "subject": "7",
        "method": "CreateOrder",
        "request_id": "r",
        "resources": ["60"],
    }
    assert audit("--limit 5") == shown[:5]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ("--tenant acme", 20),
        ("--tenant ac%", 0),
        ("--caller key:k1", 20),
        ("--method CreateOrder", 20),
        ("--method CreateOrder --caller key:k1", 0),
        ("--resource 60", 1),
        ("--resource 6", 0),
        ("--resource _0", 0),
    ],
)
def test_filters(audit: Audit, options: str, count: int) -> None:
    assert len(audit(options)) == count


def test_only_changes_since_a_time(audit: Audit) -> None:
    since = (NOW - timedelta(minutes=10)).isoformat()

    assert [row["resources"] for row in audit(f"--since {since}")] == [[str(60 * minute)] for minute in range(11)]
    assert audit("--since 2999-01-01") == []


def test_the_table_names_the_caller(urls: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", *urls, "--limit", "2"]) == 0

    output = capsys.readouterr().out
    assert "user:7" in output
    assert "Only the first 2 are shown" in output


def test_old_rows_are_deleted(audit: Audit, urls: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fill(urls[1], [timedelta(days=3, minutes=n) for n in range(5)], caller="c", method="m")

    assert main(["audit-purge", *urls, "--older-than", "2d"]) == 0

    assert capsys.readouterr().out == "inventory-api: 5 rows deleted\norder-api: 0 rows deleted\n"
    assert len(audit("--all")) == 40


def test_an_age_below_a_day_is_refused(urls: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["audit-purge", *urls, "--older-than", "23h"])

    assert "must be 1d or more" in capsys.readouterr().err


def test_a_database_without_an_audit_log_is_an_error(
    urls: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.db"
    old.touch()

    assert main(["audit", *urls, "--orders-url", sqlite_url(old)]) == 1

    assert capsys.readouterr().err == "audit: the database of order-api has no audit log; run its migrations\n"
