"""Checks of docker-compose.yml that read only the file: no Docker engine is needed."""

import re
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from console.settings import ConsoleSettings, Watched
from event_relay.settings import RelaySettings
from inventory_api.settings import InventorySettings
from order_api.settings import OrderSettings
from reservation_reaper.settings import ReaperSettings
from shop_common.environment.process_settings import CommonSettings
from shop_common.identity import grants
from shop_common.identity.grants import Grants
from shop_common.identity.rules import PERMISSIONS
from shop_common.process.lifecycle import FLUSH_SECONDS_MAX
from tests.compose.composition import FILE, ROOT

Service = dict[str, Any]

SERVICES: dict[str, Service] = yaml.safe_load(FILE.read_text())["services"]
# Not the load generator: no service depends on its end.
ONCE = {name: service for name, service in SERVICES.items() if service["restart"] == "no" and name != "load"}
LASTING = {name: service for name, service in SERVICES.items() if service["restart"] != "no"}

SETTINGS: dict[str, type[BaseSettings]] = {
    "inventory-api": InventorySettings,
    "migrate-inventory": InventorySettings,
    "order-api": OrderSettings,
    "migrate-orders": OrderSettings,
    "reservation-reaper": ReaperSettings,
    "event-relay": RelaySettings,
    "console": ConsoleSettings,
}

PROCESSES = [name for name in SETTINGS if name in LASTING]

every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def conditions(service: Service) -> dict[str, str]:
    needed = service.get("depends_on", {})
    return {name: needed[name]["condition"] for name in needed} if isinstance(needed, dict) else {}


@every_service
def test_nothing_runs_with_more_rights_or_resources_than_it_needs(service: Service) -> None:
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    limits = service["deploy"]["resources"]["limits"]
    # Docker refuses a CPU limit above the number of processors, and the smallest machine has one.
    assert float(limits["cpus"]) <= 1
    assert limits["memory"]
    assert limits["pids"] <= 2048


@every_service
def test_logs_have_a_size_limit(service: Service) -> None:
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@every_service
def test_every_image_has_a_version(service: Service) -> None:
    name, _, tag = service["image"].partition(":")
    assert name
    assert tag
    assert "latest" not in tag


@every_service
def test_ports_are_published_on_loopback_and_can_be_configured(service: Service) -> None:
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{SHOP_[A-Z]+_PORT:-\d+\}:\d+", port)


@every_service
def test_the_file_contains_no_password(service: Service) -> None:
    for name, value in service.get("environment", {}).items():
        assert "PASSWORD" not in name or name.endswith("_FILE")
        assert not re.search(r"://[^/@]*:[^/@]*@", str(value)), "no password in a URL"


@pytest.mark.parametrize("name", LASTING)
def test_long_running_services_are_restarted_and_have_a_health_check(name: str) -> None:
    assert LASTING[name]["restart"] == "unless-stopped"
    assert "healthcheck" in LASTING[name] or "\nHEALTHCHECK " in stage(name)


def stage(name: str) -> str:
    """The Dockerfile's lines of a stage and of the stages it is based on. Empty if there is no such stage."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    found = re.search(rf"^FROM (\S+) AS {re.escape(name)}$(.*?)(?=^FROM|\Z)", dockerfile, re.DOTALL | re.MULTILINE)
    return stage(found[1]) + found[2] if found else ""


@pytest.mark.parametrize("name", ONCE)
def test_another_service_waits_for_each_one_time_service(name: str) -> None:
    # Otherwise `up --wait` reports the end of its container as a failure.
    waiting = [other for other in SERVICES.values() if conditions(other).get(name) == "service_completed_successfully"]
    assert waiting


@pytest.mark.parametrize("name", SETTINGS)
def test_the_environment_has_only_settings_of_the_process(name: str) -> None:
    known = {field.upper() for field in SETTINGS[name].model_fields}
    set_here = {setting.removesuffix("_FILE") for setting in SERVICES[name]["environment"]}
    assert set_here <= known


@pytest.mark.parametrize("name", PROCESSES)
def test_the_grace_period_is_long_enough_to_drain(name: str) -> None:
    fields = CommonSettings.model_fields
    needed = fields["drain_seconds"].default + fields["grace_seconds"].default + FLUSH_SECONDS_MAX
    assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > needed


def test_every_variable_is_in_env_example() -> None:
    used = set(re.findall(r"\$\{([A-Z_]+)", FILE.read_text()))
    shown = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert shown == used


@pytest.mark.parametrize("name", PROCESSES)
def test_spans_are_sent_to_the_jaeger_of_the_profile(name: str) -> None:
    assert SERVICES[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"].endswith("-http://jaeger:4317}")
    assert SERVICES["jaeger"]["profiles"] == ["observability"]


def test_only_the_system_starts_without_a_profile() -> None:
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {name: ["observability"] for name in ("jaeger", "prometheus", "grafana")} | {
        name: [name] for name in ("console", "load")
    }


def networks(name: str) -> set[str]:
    return set(SERVICES[name].get("networks", ()))


def test_the_apis_may_create_enough_threads() -> None:
    for name in ("inventory-api", "order-api"):
        pids = SERVICES[name]["deploy"]["resources"]["limits"]["pids"]
        assert pids >= 1.5 * SETTINGS[name].model_fields["grpc_threads"].default


def test_services_share_a_network_only_if_they_need_it() -> None:
    assert [name for name in SERVICES if "data" in networks(name)] == [
        *("inventory-api", "order-api", "event-relay", "postgres", "migrate-inventory", "migrate-orders")
    ]
    assert [name for name in SERVICES if "events" in networks(name)] == [
        *("inventory-api", "order-api", "event-relay", "kafka", "topics")
    ]
    for outside in ("gateway", "load"):
        assert networks(outside) == {"edge"}
    # These run without a network.
    assert {name for name in SERVICES if not networks(name)} == {"secrets", "roles", "rights"}
    assert all(SERVICES[name]["network_mode"] == "none" for name in ("secrets", "roles", "rights"))


@pytest.mark.parametrize(
    ("caller", "called"),
    [
        *(("gateway", api) for api in ("inventory-api", "order-api")),
        *(("reservation-reaper", api) for api in ("inventory-api", "order-api")),
        ("order-api", "inventory-api"),
        *(("console", process) for process in PROCESSES),
        *((name, "jaeger") for name in LASTING if name in SETTINGS),
        *(("prometheus", name) for name in LASTING if name in SETTINGS),
        ("grafana", "prometheus"),
    ],
)
def test_a_caller_shares_a_network_with_its_callee(caller: str, called: str) -> None:
    assert networks(caller) & networks(called)


def mounts(name: str) -> dict[str, str]:
    """Volume or file → where the service mounts it, and how."""
    found = (mount.replace("${SHOP_GRANTS:-", "").replace("}:", ":") for mount in SERVICES[name].get("volumes", ()))
    return dict(mount.split(":", 1) for mount in found)


def test_a_container_has_only_the_secrets_that_it_uses() -> None:
    volumes = [volume for volume in mounts("secrets") if not volume.startswith(".")]
    for volume in volumes:
        owner = volume.removesuffix("-secrets")
        users = {name for name in SERVICES if volume in mounts(name)} - {"secrets"}
        expected = {"authority": set(), "admin": {"roles", "rights", "migrate-inventory", "migrate-orders", "topics"}}
        assert users == expected.get(owner, {owner})
        assert all(mounts(name)[volume].endswith(":ro") for name in users)
    assert {name for name in SERVICES if "postgres-socket" in mounts(name)} == {"postgres", "roles", "rights"}


def test_only_the_service_that_makes_secrets_has_a_capability() -> None:
    assert {name: service["cap_add"] for name, service in SERVICES.items() if "cap_add" in service} == {
        "secrets": ["CHOWN"]
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_every_connection_of_a_process_is_encrypted_and_verified(name: str) -> None:
    environment = SERVICES[name]["environment"]
    assert "INSECURE" not in environment
    for setting, value in environment.items():
        if setting.endswith("DATABASE_URL"):
            assert "?sslmode=verify-full&sslrootcert=/run/secrets/" in value
        if setting == "KAFKA_BOOTSTRAP_SERVERS":
            assert environment["KAFKA_SECURITY_PROTOCOL"] == "SASL_SSL"
            assert environment["KAFKA_SASL_USERNAME"] == name
        if setting.endswith("_TARGET"):
            assert "TLS_CA_PATH" in environment
        if setting == "TLS_CERT_PATH" and name.endswith("-api"):
            assert {"TLS_CLIENT_CA_PATH", "GRANTS_PATH"} <= environment.keys()


def test_the_console_watches_each_process_at_its_ports() -> None:
    settings = ConsoleSettings.model_construct(processes=SERVICES["console"]["environment"]["PROCESSES"])

    assert settings.watched == [
        Watched(name, f"{name}:{SETTINGS[name].model_fields['health_port'].default}", f"{name}:9464")
        for name in PROCESSES
        if name != "console"
    ]


def test_the_console_has_no_permissions_of_its_own_and_each_viewer_signs_in() -> None:
    assert "spiffe://shop/console" not in grants_in("grants.yaml").workloads
    assert SERVICES["console"]["environment"]["SIGN_IN"] == "true"


def grants_in(name: str) -> Grants:
    return grants.read(ROOT / "deploy/compose" / name)


def test_callers_at_the_gateway_need_no_token_by_default_and_may_do_everything() -> None:
    default, with_tokens = grants_in("grants.yaml"), grants_in("grants-tokens.yaml")

    assert default.workloads["spiffe://shop/gateway"].permissions == set(PERMISSIONS)
    # Apart from the gateway, the two files are equal.
    assert {name: of for name, of in default.workloads.items() if name != "spiffe://shop/gateway"} == (
        with_tokens.workloads
    )
    assert with_tokens.scopes


def test_every_workload_with_permissions_has_a_certificate() -> None:
    script = (ROOT / "deploy/compose/secrets.sh").read_text()
    made = re.search(r"^for name in (.+); do\n    make_certificate", script, re.MULTILINE)
    assert made
    assert {f"spiffe://shop/{name}" for name in made[1].split()} >= grants_in("grants.yaml").workloads.keys()
