"""Checks of the files in deploy/prometheus and deploy/grafana, without running processes."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability.prometheus import DEPLOYED, ROOT, promtool

GRAFANA = ROOT / "deploy" / "grafana"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()

UNIT_TESTS = sorted((DEPLOYED / "tests").iterdir())

Json = dict[str, Any]


def alerts() -> list[Json]:
    content = yaml.safe_load((DEPLOYED / "rules" / "alerts.yml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def data_sources() -> dict[str, Json]:
    content = yaml.safe_load((GRAFANA / "provisioning/datasources/shop.yml").read_text())
    return {source["uid"]: source for source in content["datasources"]}


every_alert = pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])


def test_prometheus_accepts_the_configuration_and_its_rules(docker_engine: str) -> None:
    checked = promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")
    assert ": 0 rules found" not in checked
    assert "SUCCESS" in checked


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.name)
def test_the_rules_pass_their_unit_tests(docker_engine: str, path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", f"tests/{path.name}")


@every_alert
def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not(alert: Json) -> None:
    cases = [
        case
        for path in UNIT_TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == alert["alert"]
    ]
    assert any(case.get("exp_alerts") for case in cases)
    assert any(not case.get("exp_alerts") for case in cases)


@every_alert
def test_every_alert_links_to_its_section_of_the_runbook(alert: Json) -> None:
    assert alert["annotations"]["summary"]
    assert alert["labels"]["severity"] in {"page", "ticket"}

    _, anchor = alert["annotations"]["runbook_url"].split("#")
    assert anchor == alert["alert"].lower()
    section = re.search(rf"^### {alert['alert']}\n\n(Page|Ticket)\. ", RUNBOOK, re.MULTILINE)
    assert section
    assert section[1].lower() == alert["labels"]["severity"]


def test_the_runbook_has_no_section_without_an_alert() -> None:
    assert set(re.findall(r"^### (Shop\w+)$", RUNBOOK, re.MULTILINE)) == {alert["alert"] for alert in alerts()}


def test_the_runbook_quotes_titles_of_dashboards_and_panels() -> None:
    _, _, after = RUNBOOK.partition("\n## Alerts\n")
    quoted = set(re.findall(r'"([A-Z][^"]*)"', " ".join(after.split())))

    dashboards = [json.loads(path.read_text()) for path in (GRAFANA / "dashboards").glob("*.json")]
    titles = {each["title"] for dashboard in dashboards for each in [dashboard, *dashboard["panels"]]}
    assert quoted
    assert quoted <= titles


def test_prometheus_scrapes_every_deployable() -> None:
    jobs = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())["scrape_configs"]
    composed = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    deployables = sorted(path.name for path in (ROOT / "services").iterdir() if path.name in composed)
    assert "order-api" in deployables

    assert sorted(job["job_name"] for job in jobs) == deployables
    for job in jobs:
        (discovery,) = job["dns_sd_configs"]
        assert discovery["names"] == [job["job_name"]], "the DNS name that the replicas share"
        assert discovery["port"] == 9464


def test_the_dashboards_match_the_program_that_generates_them() -> None:
    subprocess.run([sys.executable, GRAFANA / "make_dashboards.py", "--check"], check=True)


@pytest.mark.parametrize("path", sorted((GRAFANA / "dashboards").iterdir()), ids=lambda path: path.name)
def test_the_panels_of_a_dashboard_do_not_overlap_and_have_known_data_sources(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    panels = dashboard["panels"]

    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        position = panel["gridPos"]
        cells = {(position["x"] + x, position["y"] + y) for x in range(position["w"]) for y in range(position["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} overlaps another panel"
        taken |= cells
    used = {source["uid"] for panel in panels for source in _data_sources_in(panel)}
    assert used <= data_sources().keys()


def test_exemplars_link_to_the_data_source_of_traces() -> None:
    sources = data_sources()
    (destination,) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert destination["name"] == "trace_id", "the label that shop_common.rpc.method sets on exemplars"
    assert sources[destination["datasourceUid"]]["type"] == "jaeger"


def test_compose_mounts_the_files_that_grafana_reads() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounted = {
        inside: ROOT / outside
        for outside, inside, *_ in (volume.split(":") for volume in compose["grafana"]["volumes"])
        if outside.startswith("./")
    }
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/shop.yml").read_text())["providers"][0]

    assert list(mounted[provider["options"]["path"]].glob("*.json"))
    assert (mounted["/etc/grafana/provisioning"] / "datasources").is_dir()
    home = compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (mounted[home.rpartition("/")[0]] / home.rpartition("/")[2]).is_file()
    for source in data_sources().values():
        host, port = re.fullmatch(r"http://([a-z]+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]  # None fails the test
        assert any(published.endswith(f":{port}") for published in compose[host]["ports"])


def _data_sources_in(value: Any) -> list[Json]:
    if isinstance(value, list):
        return [source for each in value for source in _data_sources_in(each)]
    if isinstance(value, dict):
        own = [value["datasource"]] if isinstance(value.get("datasource"), dict) else []
        return own + [source for each in value.values() for source in _data_sources_in(each)]
    return []
