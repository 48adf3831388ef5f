"""Settings: a service declares them, and the environment has their values."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy import make_url

from shop_common.db.password import without_file
from shop_common.db.settings import DatabaseSettings, DatabaseUrl
from shop_common.environment.process_settings import ApiSettings, CallerSettings, GrpcPort, HealthPort, LogLevel, Target
from shop_common.environment.settings import Settings, help_text, load, shown
from shop_common.events.kafka_settings import KafkaSettings


class ParcelSettings(ApiSettings, DatabaseSettings, KafkaSettings):
    """The settings of a service for these tests."""

    grpc_port: GrpcPort = 50099
    health_port: HealthPort = 50109
    database_url: DatabaseUrl = "sqlite:///./parcels.db"


class CallingParcelSettings(ParcelSettings, CallerSettings):
    """The settings of the service if it calls another one."""


class AddressSettings(ApiSettings, DatabaseSettings):
    """The settings of a service, two of which have no default."""


class CarrierSettings(Settings):
    """The settings of a process that calls the service."""

    parcel_target: Target


def test_without_environment_the_defaults_hold() -> None:
    settings = load(ParcelSettings)

    assert settings.grpc_port == 50099
    assert settings.database_url == "sqlite:///./parcels.db"
    assert settings.kafka_bootstrap_servers == "localhost:9092"
    assert settings.workers == 1


def test_the_settings_in_force_have_no_secret_and_no_internal_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://api:hunter2@db:5432/parcels?sslpassword=hunter2")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:hun/t@er2@otel:4317/?key=hunter2")
    monkeypatch.setenv("REFLECTION", "true")

    found = shown(load(ParcelSettings))

    assert found["DATABASE_URL"] == "(hidden)"
    assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://(hidden)@otel:4317/?(hidden)"
    assert (found["REFLECTION"], found["GRPC_PORT"], found["TLS_CERT_PATH"]) == ("true", "50099", "")
    assert "WORKER_PIPE" not in found
    assert "hun" not in str(found)


def test_the_environment_wins_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_PORT", "1234")
    monkeypatch.setenv("log_level", "Warning")
    monkeypatch.setenv("REFLECTION", "false")

    settings = load(ParcelSettings)

    assert settings.grpc_port == 1234
    assert settings.log_level is LogLevel.WARNING
    assert settings.reflection is False


@pytest.mark.parametrize(
    ("given", "health_port"),
    [
        ({}, 50109),
        ({"GRPC_PORT": "7000"}, 7010),
        ({"GRPC_PORT": "7000", "HEALTH_PORT": "9"}, 9),
        ({"GRPC_PORT": "65530"}, 65520),
        ({"GRPC_PORT": "0"}, 0),
        ({"HEALTH_PORT": "0"}, 0),
    ],
)
def test_the_port_for_probes_is_beside_the_port_that_is_set(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], health_port: int
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    assert load(ParcelSettings).health_port == health_port


def test_an_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_PORT", "")
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "")

    assert load(ParcelSettings) == ParcelSettings()


def test_all_wrong_settings_are_reported_at_once_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRPC_PORT", "first")
    monkeypatch.setenv("WORKERS", "0")
    monkeypatch.setenv("LOG_LEVEL", "loud")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "somewhere")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")

    with pytest.raises(SystemExit) as ended:
        load(ParcelSettings)

    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "GRPC_PORT: must be a valid integer, but is 'first'" in said
    assert "WORKERS: must be greater than or equal to 1, but is '0'" in said
    assert "LOG_LEVEL: must be 'debug', 'info', 'warning' or 'error', but is 'loud'" in said
    assert "KAFKA_BOOTSTRAP_SERVERS: must be HOST:PORT" in said
    assert "OTEL_EXPORTER_OTLP_ENDPOINT: must be http://HOST:PORT" in said
    assert "Traceback" not in said


def test_a_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DATABASE_URL", "mysql://shop:hunter2@db/shop")
    with pytest.raises(SystemExit):
        load(ParcelSettings)
    said = capsys.readouterr().err
    assert "DATABASE_URL: must be" in said
    assert "hunter2" not in said

    monkeypatch.setenv("DATABASE_URL", "postgresql://shop:hunter2@db/shop")
    assert "hunter2" not in repr(load(ParcelSettings))


@pytest.fixture
def complaints(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Return the error output for invalid settings."""

    def refused() -> str:
        with pytest.raises(SystemExit) as ended:
            load(ParcelSettings)
        assert ended.value.code == 2
        return capsys.readouterr().err

    return refused


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_setting_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str) -> None:
    (tmp_path / "port").write_bytes(f"1234{end}".encode())
    (tmp_path / "password").write_bytes(f" p@ss/w:rd\n{end}".encode())
    monkeypatch.setenv("GRPC_PORT_FILE", str(tmp_path / "port"))
    monkeypatch.setenv("grpc_port", "")
    monkeypatch.setenv("DATABASE_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("DATABASE_URL", "postgresql://shop@db:5433/parcels?sslmode=require")

    settings = load(ParcelSettings)

    assert settings.grpc_port == 1234
    url = without_file(make_url(settings.database_url))
    assert url.password == (" p@ss/w:rd\n" if end else " p@ss/w:rd")
    assert str(url) == "postgresql+psycopg://shop:***@db:5433/parcels?sslmode=require"
    assert "p@ss" not in repr(settings)
    assert "p%40ss" not in repr(settings)


def test_files_that_cannot_be_read_are_named_all_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, complaints: Callable[[], str]
) -> None:
    def hold(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "absent"))
    monkeypatch.setenv("DATABASE_PASSWORD_FILE", str(tmp_path))
    monkeypatch.setenv("GRPC_PORT_FILE", hold("empty", b"\n"))
    monkeypatch.setenv("METRICS_PORT_FILE", hold("binary", b"\xff\xfe"))
    monkeypatch.setenv("LOG_LEVEL_FILE", hold("large", b"x" * 70_000))
    monkeypatch.setenv("DRAIN_SECONDS_FILE", hold("secret", b"hunter2"))
    monkeypatch.setenv("WORKERS", "2")
    monkeypatch.setenv("WORKERS_FILE", hold("workers", b"2"))

    said = complaints()

    assert f"DATABASE_URL_FILE: cannot read '{tmp_path}/absent': No such file or directory\n" in said
    assert f"DATABASE_PASSWORD_FILE: cannot read '{tmp_path}': Is a directory\n" in said
    assert f"GRPC_PORT_FILE: '{tmp_path}/empty' is empty\n" in said
    assert f"METRICS_PORT_FILE: '{tmp_path}/binary' is not text in UTF-8\n" in said
    assert f"LOG_LEVEL_FILE: '{tmp_path}/large' is larger than 65536 bytes" in said
    assert "WORKERS_FILE: must not be set together with WORKERS\n" in said
    assert "DRAIN_SECONDS: must be a valid number (value not shown)\n" in said, "it may be a secret of another setting"
    assert len(said.splitlines()) == 1 + 7
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("sqlite:////data/what?/shop.db", "must have no options: a ? in the path is written as %3F, and a % as %25"),
        ("mysql://shop@db/shop", "must be sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME"),
        ("postgresql+asyncpg://shop:hunter2@db/shop", "must be sqlite:///PATH or"),
        ("postgresql://shop:hunter2@db:port/shop", "must be sqlite:///PATH or"),
        ("postgresql://shop:hunter2@db:65536/shop", "must be sqlite:///PATH or"),
        ("postgresql://shop:hunter2@db/shop?sslmod=require", "must have no option that"),
        ("sqlite:///", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
    ],
)
def test_a_wrong_database_url_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, complaints: Callable[[], str], url: str, complaint: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)

    said = complaints()

    assert f"DATABASE_URL: {complaint}" in said
    assert url.partition("//")[2] not in said or not url.partition("//")[2]
    assert "hunter2" not in said


@pytest.mark.parametrize(
    "url", ["", "sqlite:///./parcels.db", "postgresql://db/parcels", "postgresql://shop:other@db/parcels"]
)
def test_a_password_needs_a_url_that_has_a_user_and_none_of_its_own(
    monkeypatch: pytest.MonkeyPatch, complaints: Callable[[], str], url: str
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    monkeypatch.setenv("DATABASE_URL", url)

    said = complaints()

    assert "DATABASE_URL: must " in said
    assert "when DATABASE_PASSWORD is set" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        (
            {"GRPC_PORT": "9464", "METRICS_PORT": "9464"},
            "METRICS_PORT: must differ from GRPC_PORT, but both are 9464",
        ),
        ({"GRPC_PORT": "0", "WORKERS": "2"}, "WORKERS: must be 1 with GRPC_PORT 0, but is 2"),
    ],
)
def test_settings_that_cannot_both_hold_are_refused(
    monkeypatch: pytest.MonkeyPatch, complaints: Callable[[], str], environment: dict[str, str], complaint: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert complaint in complaints()


@pytest.mark.parametrize("given", ["broker", "broker:0", "broker:65536", "a:1,b", "http://broker:9092", "::1:9092"])
def test_a_broker_is_a_host_and_a_port(
    monkeypatch: pytest.MonkeyPatch, complaints: Callable[[], str], given: str
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", given)

    assert f"KAFKA_BOOTSTRAP_SERVERS: must be HOST:PORT, several separated by commas, but is '{given}'" in complaints()


@pytest.mark.parametrize(
    "given", ["api", "api:0", "api:65536", "http://api:50053", "a:1,b:2", "ipv4:1.2.3.4:5,6.7.8.9"]
)
def test_a_target_is_a_host_and_a_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    monkeypatch.setenv("PARCEL_TARGET", given)

    with pytest.raises(SystemExit):
        load(CarrierSettings)

    assert f"PARCEL_TARGET: must be HOST:PORT, but is '{given}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given", ["api:50053", "[::1]:50053", "dns:///api:50053", "dns://10.0.0.1/api:50053", "ipv4:1.2.3.4:5,6.7.8.9:10"]
)
def test_a_target_may_be_written_as_grpc_does(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("PARCEL_TARGET", given)

    assert load(CarrierSettings).parcel_target == given


def test_what_has_no_default_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(AddressSettings)

    said = capsys.readouterr().err
    assert "GRPC_PORT: is required and not set" in said
    assert "DATABASE_URL: is required and not set" in said


@pytest.mark.parametrize("field", ["grpc_port", "database_url", "kafka_bootstrap_servers", "log_level"])
def test_settings_cannot_be_changed(field: str) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(load(ParcelSettings), field, None)


def test_help_tells_of_every_setting_and_of_nothing_internal() -> None:
    told = help_text(ParcelSettings)

    for name, field in ParcelSettings.model_fields.items():
        assert field.description
        assert (name.upper() in told) is (name != "worker_pipe")
    assert "GRPC_PORT = 50099" in told
    assert "NAME_FILE" in told
    assert "DATABASE_URL (required)" in help_text(AddressSettings)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"TLS_CERT_PATH": "a"}, "TLS_KEY_PATH: must be set when TLS_CERT_PATH is set"),
        ({"TLS_KEY_PATH": "a"}, "TLS_CERT_PATH: must be set when TLS_KEY_PATH is set"),
        ({"TLS_CLIENT_CA_PATH": "a"}, "TLS_CERT_PATH: must be set when TLS_CLIENT_CA_PATH is set"),
        ({"TLS_CERT_PATH": "a", "TLS_KEY_PATH": "b"}, "TLS_CA_PATH: must be set when TLS_CERT_PATH is set"),
    ],
)
def test_tls_settings_that_need_each_other_are_refused_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: dict[str, str], complaint: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit):
        load(CallingParcelSettings)

    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_a_loopback_address_needs_no_tls(host: str) -> None:
    assert list(ParcelSettings(listen_host=host).start_faults()) == []


@pytest.mark.parametrize("host", ["[::]", "0.0.0.0", "10.1.2.3", "[fe80::1]", "parcels.example.com"])
def test_any_other_address_needs_tls_or_permission(host: str) -> None:
    (fault,) = ParcelSettings(listen_host=host).start_faults()

    assert fault.startswith(f"LISTEN_HOST: other machines reach '{host}'")
    assert list(ParcelSettings(listen_host=host, insecure=True).start_faults()) == []
