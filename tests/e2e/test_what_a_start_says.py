"""What a process logs about its settings when it starts."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devstack.kafka import Kafka
from event_relay.settings import RelaySettings
from inventory_api.settings import InventorySettings
from order_api.settings import OrderSettings
from reservation_reaper.settings import ReaperSettings
from shop_common.process.unknown_settings import SETTINGS_OF_ALL, unknown
from shopctl.system.layout import REAPER, RELAY
from tests.e2e.starts import SCHEMAS, START_SECONDS, Start, migrate, starting

ALL_SETTINGS = (InventorySettings, OrderSettings, ReaperSettings, RelaySettings)

ORDINARY = {
    "HOME": "/root",
    "HOSTNAME": "order-api-0",
    "PATH": "/usr/bin",
    "LANG": "C.UTF-8",
    "LOG_DIR": "/var/log",
    "GRPC_VERBOSITY": "ERROR",
    "GRPC_TRACE": "all",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "KUBERNETES_SERVICE_PORT_HTTPS": "443",
    "ORDER_API_PORT": "tcp://10.0.0.2:50054",
    "ORDER_API_PORT_50054_TCP_ADDR": "10.0.0.2",
    "INVENTORY_API_SERVICE_HOST": "10.0.0.3",
    "INVENTORY_API_SERVICE_PORT_GRPC": "50053",
    "KAFKA_HOME": "/opt/kafka",
    "KAFKA_OPTS": "",
    "LISTEN_PID": "1",
    "LISTEN_FDS": "1",
    "MY_DATABASE_URL": "x",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4317",
    "OTEL_EXPORTER_OTLP_HEADERS": "",
    "PGPASSWORD": "x",
    "POSTGRES_PASSWORD": "x",
    "PYTHONUNBUFFERED": "1",
    "SHOP_VERSION": "1",
    "TMPDIR": "/tmp",
    "http_proxy": "http://proxy",
}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as start:
        yield start


def test_the_list_of_all_settings_is_complete() -> None:
    assert {name.upper() for settings in ALL_SETTINGS for name in settings.model_fields} == SETTINGS_OF_ALL


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_an_ordinary_environment_causes_no_warning(settings: Any) -> None:
    compose = re.findall(r"^#?([A-Z_]+)=", Path(".env.example").read_text(), re.MULTILINE)
    assert "SHOP_INVENTORY_PORT" in compose
    environment = ORDINARY | dict.fromkeys(compose, "") | dict.fromkeys(SETTINGS_OF_ALL, "")
    environment |= {f"{name}_FILE": "" for name in SETTINGS_OF_ALL}

    assert list(unknown(settings, environment)) == []


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("RESERVATION_TLL", "RESERVATION_TTL"),
        ("DATABSE_URL", "DATABASE_URL"),
        ("DATABASE_PASWORD_FILE", "DATABASE_PASSWORD"),
        ("RESERVATION_SECONDS", "RESERVATION_TTL"),
        ("WORKRES", "WORKERS"),
        ("kafka_bootstrap_server", "KAFKA_BOOTSTRAP_SERVERS"),
        ("OTEL_EXPORTER_OLTP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_a_misspelt_setting_is_reported_with_the_nearest_name(name: str, nearest: str) -> None:
    assert list(unknown(InventorySettings, {name: "x"})) == [(name, nearest)]


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_api_logs_unknown_settings_and_those_in_use(
    start: Start, database_url: str, name: str, kafka: Kafka
) -> None:
    migrate(SCHEMAS[name], database_url)
    settings = {"DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap, "DATABSE_URL": "secret"}

    process = start(name, settings)

    line = json.loads(process.wait_for_line('"serving"', START_SECONDS))
    assert line["port"] == int(process.env["GRPC_PORT"])
    assert line["database"].partition("://")[0].startswith(database_url.partition(":")[0].partition("+")[0])
    assert line["kafka"] == kafka.bootstrap
    assert (line["workers"], line["tls"], "version" in line) == (1, False, True)
    warning = json.loads(process.wait_for_line("unknown setting", START_SECONDS))
    assert (warning["setting"], warning["nearest"], warning["level"]) == ("DATABSE_URL", "DATABASE_URL", "warning")
    assert "secret" not in process.log


def test_no_password_is_logged(start: Start) -> None:
    url = "postgresql://shop:hunter2@127.0.0.1:1/orders?sslpassword=hunter2"

    process = start(RELAY, {"ORDERS_DATABASE_URL": url, "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"})

    line = json.loads(process.wait_for_line('"serving"', START_SECONDS))
    assert line["orders"] == "postgresql+psycopg://shop@127.0.0.1:1/orders"
    assert "hunter2" not in process.log


def test_the_reaper_logs_its_targets_and_schedule(start: Start) -> None:
    process = start(REAPER, {"PURGE_CRON": "0 3 * * *", "INVENTORY_TARGET": "a:1", "ORDER_TARGET": "b:2"})

    line = json.loads(process.wait_for_line('"serving"', START_SECONDS))

    assert (line["inventory"], line["orders"], line["purges"]) == ("a:1", "b:2", "0 3 * * *")
