"""What docker-compose.yml promises, read from the file itself: no engine is needed."""

import re
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from event_relay.settings import RelaySettings
from inventory_api.settings import InventorySettings
from order_api.settings import OrderSettings
from reservation_reaper.settings import ReaperSettings
from shop_common.environment.settings import CommonSettings
from shop_common.process.lifecycle import FLUSH_SECONDS_MAX
from shopctl.events.topics import TOPICS
from tests.compose.composition import FILE, ROOT

Service = dict[str, Any]

SERVICES: dict[str, Service] = yaml.safe_load(FILE.read_text())["services"]
# Nobody waits for the load: it ends long after all has started.
ONCE = {name: service for name, service in SERVICES.items() if service["restart"] == "no" and name != "load"}
LASTING = {name: service for name, service in SERVICES.items() if service["restart"] != "no"}

SETTINGS: dict[str, type[BaseSettings]] = {
    "inventory-api": InventorySettings,
    "migrate-inventory": InventorySettings,
    "order-api": OrderSettings,
    "migrate-orders": OrderSettings,
    "reservation-reaper": ReaperSettings,
    "event-relay": RelaySettings,
}

every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def conditions(service: Service) -> dict[str, str]:
    needed = service.get("depends_on", {})
    return {name: needed[name]["condition"] for name in needed} if isinstance(needed, dict) else {}


@every_service
def test_nothing_runs_with_more_rights_or_resources_than_it_needs(service: Service) -> None:
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    limits = service["deploy"]["resources"]["limits"]
    # A limit above the machine's number of processors would not start on the smallest.
    assert float(limits["cpus"]) <= 1
    assert limits["memory"]
    assert limits["pids"] <= 2048


@every_service
def test_no_log_grows_without_end(service: Service) -> None:
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@every_service
def test_every_image_has_a_version(service: Service) -> None:
    name, _, tag = service["image"].partition(":")
    assert name
    assert tag
    assert "latest" not in tag


@every_service
def test_ports_are_for_this_machine_and_can_be_chosen(service: Service) -> None:
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{SHOP_[A-Z]+_PORT:-\d+\}:\d+", port)


@every_service
def test_no_password_is_written_here(service: Service) -> None:
    for name, value in service.get("environment", {}).items():
        assert "PASSWORD" not in name or name.endswith("_FILE")
        assert not re.search(r"://[^/@]*:[^/@]*@", str(value)), "no password in a URL"


@pytest.mark.parametrize("name", LASTING)
def test_what_lasts_is_started_again_and_checked(name: str) -> None:
    assert LASTING[name]["restart"] == "unless-stopped"
    assert "healthcheck" in LASTING[name] or "\nHEALTHCHECK " in stage(name)


def stage(name: str) -> str:
    """What the Dockerfile says of a stage, and of those that it is made from; nothing of what is no stage there."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    found = re.search(rf"^FROM (\S+) AS {re.escape(name)}$(.*?)(?=^FROM|\Z)", dockerfile, re.DOTALL | re.MULTILINE)
    return stage(found[1]) + found[2] if found else ""


@pytest.mark.parametrize("name", ONCE)
def test_somebody_waits_for_what_is_done_once(name: str) -> None:
    # Else `up --wait` takes its end for a failure.
    waiting = [other for other in SERVICES.values() if conditions(other).get(name) == "service_completed_successfully"]
    assert waiting


@pytest.mark.parametrize("name", SETTINGS)
def test_the_environment_has_real_settings_only(name: str) -> None:
    known = {field.upper() for field in SETTINGS[name].model_fields}
    given = {setting.removesuffix("_FILE") for setting in SERVICES[name]["environment"]}
    assert given <= known


@pytest.mark.parametrize("name", ["inventory-api", "order-api", "reservation-reaper", "event-relay"])
def test_a_process_has_time_to_drain(name: str) -> None:
    fields = CommonSettings.model_fields
    needed = fields["drain_seconds"].default + fields["grace_seconds"].default + FLUSH_SECONDS_MAX
    assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > needed


def test_all_that_can_be_chosen_is_in_the_example() -> None:
    used = set(re.findall(r"\$\{([A-Z_]+)", FILE.read_text()))
    shown = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert shown == used


@pytest.mark.parametrize("name", ["inventory-api", "order-api", "reservation-reaper", "event-relay"])
def test_spans_go_to_the_jaeger_of_the_profile(name: str) -> None:
    assert SERVICES[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"].endswith("-http://jaeger:4317}")
    assert SERVICES["jaeger"]["profiles"] == ["observability"]


def test_nothing_beside_the_system_starts_unasked() -> None:
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {name: ["observability"] for name in ("jaeger", "prometheus", "grafana")} | {"load": ["load"]}


def networks(name: str) -> set[str]:
    return set(SERVICES[name].get("networks", ()))


def test_the_apis_have_threads_enough() -> None:
    for name in ("inventory-api", "order-api"):
        pids = SERVICES[name]["deploy"]["resources"]["limits"]["pids"]
        assert pids >= 1.5 * SETTINGS[name].model_fields["grpc_threads"].default


def test_who_need_not_speak_to_each_other_cannot() -> None:
    assert [name for name in SERVICES if "data" in networks(name)] == [
        *("inventory-api", "order-api", "event-relay", "postgres", "migrate-inventory", "migrate-orders")
    ]
    assert [name for name in SERVICES if "events" in networks(name)] == [
        *("inventory-api", "order-api", "event-relay", "kafka", "topics")
    ]
    for outside in ("gateway", "load"):
        assert networks(outside) == {"edge"}
    # Who has neither is in a network of all, or in another container's.
    assert {name for name in SERVICES if not networks(name)} == {"secrets", "databases"}
    assert all("network_mode" in SERVICES[name] for name in ("secrets", "databases"))


@pytest.mark.parametrize(
    ("caller", "called"),
    [
        *(("gateway", api) for api in ("inventory-api", "order-api")),
        *(("reservation-reaper", api) for api in ("inventory-api", "order-api")),
        ("order-api", "inventory-api"),
        *((name, "jaeger") for name in LASTING if name in SETTINGS),
        *(("prometheus", name) for name in LASTING if name in SETTINGS),
        ("grafana", "prometheus"),
    ],
)
def test_who_calls_another_can_reach_it(caller: str, called: str) -> None:
    assert networks(caller) & networks(called)


def test_every_topic_is_made() -> None:
    script = (ROOT / "deploy/compose/topics.sh").read_text()
    made = re.search(r"^for topic in (.+); do$", script, re.MULTILINE)
    assert made
    assert set(made[1].split()) == set(TOPICS)
