"""The API keys of a process: which are accepted, and what happens while they cannot be read."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from shop_common.identity import api_key, api_key_set
from shop_common.identity.api_key import ApiKey
from shop_common.identity.api_key_set import ApiKeySet, Uses
from shop_common.identity.authenticator import Authenticator
from shop_common.identity.caller import Caller
from shop_common.identity.errors import ApiKeysUnavailable, TokenExpired, TokenInvalid
from shop_common.identity.grants import Grants
from testkit.eventually import eventually

PERMISSIONS = frozenset({"orders.read"})


class _Source:
    """The store of the keys, which may be unavailable."""

    def __init__(self) -> None:
        self.keys: list[ApiKey] = []
        self.is_available = True
        self.reads = 0
        self.reported: list[dict[str, datetime]] = []

    def new_key(self, *, tenant: str = "default", lifetime: timedelta | None = None) -> str:
        key_id, text = api_key.new_text()
        expires_at = None if lifetime is None else datetime.now(UTC) + lifetime
        self.keys.append(ApiKey(key_id, api_key.digest_of(text), tenant, PERMISSIONS, expires_at))
        return text

    def read(self, uses: Uses) -> Iterator[ApiKey]:
        self.reads += 1
        yield from self.keys
        if not self.is_available:
            raise ConnectionError("the store is away")
        if uses:
            self.reported.append(dict(uses))


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> _Source:
    monkeypatch.setattr(api_key_set, "REFRESH_SECONDS", 0.01)
    monkeypatch.setattr(api_key_set, "RETRY_SECONDS", 0.01)
    return _Source()


@pytest.fixture
def ready() -> list[bool]:
    """What the set has reported about its readiness."""
    return []


@pytest.fixture
def keys(source: _Source, ready: list[bool]) -> Iterator[ApiKeySet]:
    made = ApiKeySet(source.read)
    made.start(ready.append)
    eventually(lambda: ready[-1])
    yield made
    made.stop()


def _read_again(source: _Source) -> None:
    """Wait for a read that started after this call."""
    before = source.reads
    eventually(lambda: source.reads > before + 1)


def test_a_key_has_a_prefix_for_scanners_and_a_secret_of_256_bits() -> None:
    key_id, text = api_key.new_text()

    assert text.startswith(f"shop_live_{key_id}_")
    assert api_key.ID_PATTERN.match(key_id)
    assert api_key.id_in(text) == key_id
    assert len(text.rpartition("_")[2]) * 5 >= 256


def test_the_caller_of_a_key_has_its_permissions_and_tenant(source: _Source, keys: ApiKeySet) -> None:
    text = source.new_key(tenant="acme")
    _read_again(source)

    assert keys.caller(text) == Caller(f"key:{api_key.id_in(text)}", PERMISSIONS, tenant="acme")


def test_unknown_revoked_and_malformed_keys_are_refused_alike(source: _Source, keys: ApiKeySet) -> None:
    text = source.new_key()
    _read_again(source)
    keys.caller(text)
    source.keys.clear()
    _read_again(source)
    _, unknown = api_key.new_text()

    refusals = set()
    for refused in (text, unknown, text[:-1], f"{text}a", "shop_live_", "shop_live___", f"shop_live_{'x' * 5000}"):
        with pytest.raises(TokenInvalid) as error:
            keys.caller(refused)
        refusals.add(str(error.value))
    assert len(refusals) == 1


def test_the_secret_of_another_key_is_refused(source: _Source, keys: ApiKeySet) -> None:
    one, other = source.new_key(), source.new_key()
    _read_again(source)

    with pytest.raises(TokenInvalid):
        keys.caller(f"shop_live_{api_key.id_in(one)}_{other.rpartition('_')[2]}")


def test_only_the_right_secret_learns_that_a_key_has_expired(source: _Source, keys: ApiKeySet) -> None:
    text = source.new_key(lifetime=timedelta(seconds=-1))
    _read_again(source)

    with pytest.raises(TokenExpired):
        keys.caller(text)
    with pytest.raises(TokenInvalid):
        keys.caller(text[:-4] + "aaaa")


def test_the_last_keys_stay_in_use_while_none_can_be_read_and_nobody_loses_a_use(
    source: _Source, keys: ApiKeySet
) -> None:
    text = source.new_key()
    _read_again(source)
    source.is_available = False
    _read_again(source)

    keys.caller(text)
    _read_again(source)
    assert not source.reported

    source.is_available = True
    eventually(lambda: source.reported)
    assert list(source.reported[0]) == [api_key.id_in(text)]
    _read_again(source)
    assert len(source.reported) == 1, "each use is reported once"


def test_old_keys_are_not_used_for_ever(source: _Source, keys: ApiKeySet, monkeypatch: pytest.MonkeyPatch) -> None:
    text = source.new_key()
    _read_again(source)
    source.is_available = False
    _read_again(source)
    monkeypatch.setattr(api_key_set, "KEPT_SECONDS", -1.0)

    with pytest.raises(ApiKeysUnavailable):
        keys.caller(text)


def test_a_process_is_not_ready_before_it_has_tried_to_read_the_keys(source: _Source, ready: list[bool]) -> None:
    may_end = threading.Event()

    def read(uses: Uses) -> list[ApiKey]:
        may_end.wait()
        raise ConnectionError("the store is away")

    keys = ApiKeySet(read)
    keys.start(ready.append)

    assert ready == [False]
    with pytest.raises(ApiKeysUnavailable):
        keys.caller(source.new_key())
    may_end.set()
    eventually(lambda: ready == [False, True])
    with pytest.raises(ApiKeysUnavailable):
        keys.caller(source.new_key())
    keys.stop()


def test_a_server_without_api_keys_refuses_them() -> None:
    authenticator = Authenticator(Grants(), tokens=None)
    _, text = api_key.new_text()

    with pytest.raises(TokenInvalid, match="ORDER_TARGET"):
        authenticator.caller([("authorization", f"Bearer {text}")], "spiffe://shop/a-gateway")
