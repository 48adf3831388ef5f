"""Settings come from arguments or from SHOP_* variables, and contradictions are refused."""

from pathlib import Path

import pytest

from shop_client import Settings, Tls
from shop_client.settings import TokenFile


def test_without_variables_the_defaults_apply() -> None:
    assert Settings.from_environment({}) == Settings("localhost:50053", "localhost:50054", timeout_seconds=10)


def test_every_setting_has_a_variable() -> None:
    settings = Settings.from_environment(
        {
            "SHOP_INVENTORY_TARGET": "inventory:1",
            "SHOP_ORDER_TARGET": "orders:2",
            "SHOP_TIMEOUT_SECONDS": "2.5",
            "SHOP_TOKEN": "secret",
            "SHOP_TLS_CA_PATH": "/ca",
            "SHOP_TLS_CERT_PATH": "/cert",
            "SHOP_TLS_KEY_PATH": "/key",
            "SHOP_INSECURE": "true",
        }
    )

    tls = Tls(Path("/ca"), Path("/cert"), Path("/key"))
    assert settings == Settings("inventory:1", "orders:2", 2.5, "secret", tls, insecure=True)
    assert Settings.from_environment({"SHOP_TLS": "true"}).tls == Tls()


def test_a_token_file_is_read_again_when_it_may_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("first\n")
    token = Settings.from_environment({"SHOP_TOKEN_FILE": str(tmp_path / "token")}).token
    assert isinstance(token, TokenFile)
    assert token() == "first"

    (tmp_path / "token").write_text("second\n")
    assert token() == "first"
    monkeypatch.setattr("shop_client.settings.TOKEN_FILE_SECONDS", -1)
    assert token() == "second"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SHOP_TIMEOUT_SECONDS": "soon"}, "SHOP_TIMEOUT_SECONDS"),
        ({"SHOP_TIMEOUT_SECONDS": "0"}, "timeout_seconds"),
        ({"SHOP_TLS": "maybe"}, "SHOP_TLS"),
        ({"SHOP_TLS_CERT_PATH": "/cert"}, "key_path"),
        ({"SHOP_TOKEN": "a", "SHOP_TOKEN_FILE": "/b"}, "SHOP_TOKEN_FILE"),
    ],
)
def test_a_wrong_variable_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.from_environment(environment)


@pytest.mark.parametrize(
    "target",
    ["localhost:1", "127.0.0.1:1", "dns:///localhost:1", "[::1]:1", "ipv4:127.0.0.1:1,127.0.0.2:2", "unix:/run/shop"],
)
def test_a_token_may_travel_in_plain_text_on_this_machine(target: str) -> None:
    Settings(target, target, token="secret")


@pytest.mark.parametrize(
    "target",
    [
        "shop:1",
        "dns:///shop:1",
        "dns://localhost/shop:1",
        "xds:///localhost:1",
        "127.example.com:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
    ],
)
def test_a_token_needs_tls_on_the_network(target: str) -> None:
    with pytest.raises(ValueError, match="TLS"):
        Settings("localhost:1", target, token="secret")
    Settings("localhost:1", target, token="secret", tls=Tls())
    Settings("localhost:1", target, token="secret", insecure=True)


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Settings(token="secret"))
