"""Settings, as a service declares and the environment gives them."""

import pytest
from pydantic import ValidationError

from shop_common.settings import (
    ApiSettings,
    DatabaseSettings,
    DatabaseUrl,
    GrpcPort,
    KafkaSettings,
    LogLevel,
    help_text,
    load,
)


class ParcelSettings(ApiSettings, DatabaseSettings, KafkaSettings):
    """A made-up service's settings."""

    grpc_port: GrpcPort = 50099
    database_url: DatabaseUrl = "sqlite:///./parcels.db"


class AddressSettings(ApiSettings, DatabaseSettings):
    """A made-up service's settings, with two that have no default."""


def test_without_environment_the_defaults_hold() -> None:
    settings = load(ParcelSettings)

    assert settings.grpc_port == 50099
    assert settings.database_url == "sqlite:///./parcels.db"
    assert settings.kafka_bootstrap_servers == "localhost:9092"
    assert settings.workers == 1


def test_the_environment_wins_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_PORT", "1234")
    monkeypatch.setenv("log_level", "Warning")
    monkeypatch.setenv("REFLECTION", "false")

    settings = load(ParcelSettings)

    assert settings.grpc_port == 1234
    assert settings.log_level is LogLevel.WARNING
    assert settings.reflection is False


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
    assert "DATABASE_URL (required)" in help_text(AddressSettings)
