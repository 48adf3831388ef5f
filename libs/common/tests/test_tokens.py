"""Tokens are verified with the keys of a real issuer, which rotates and revokes keys, and may be unavailable."""

import base64
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from devstack.servers.issuer import AUDIENCE, Issuer
from shop_common.identity import key_set
from shop_common.identity.errors import KeySetUnavailable, TokenExpired, TokenInvalid
from shop_common.identity.key_set import KeySet
from shop_common.identity.tokens import REMEMBERED_MAX, TokenVerifier
from testkit.eventually import eventually


class _Fixture:
    """A verifier and the issuer whose tokens it accepts."""

    def __init__(
        self,
        issuer: Issuer,
        *,
        user_claim: str = "sub",
        tenant_claim: str | None = None,
        jwks_url: str | None = None,
    ) -> None:
        self.issuer = issuer
        self.ready: list[bool] = []
        self.keys = KeySet(issuer.url, jwks_url=jwks_url)
        self.verifier = TokenVerifier(
            issuer=issuer.url, audience=AUDIENCE, user_claim=user_claim, tenant_claim=tenant_claim, keys=self.keys
        )

    def start(self) -> None:
        self.keys.start(self.ready.append)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


@pytest.fixture
def checked(issuer: Issuer) -> Iterator[_Fixture]:
    fixture = _Fixture(issuer)
    fixture.start()
    yield fixture
    fixture.keys.stop()


def test_a_token_of_the_issuer_is_accepted(checked: _Fixture) -> None:
    token = checked.verifier.verify(checked.issuer.token(42, "shopper", "staff"))

    assert (token.subject, token.scopes) == ("42", frozenset({"shopper", "staff"}))
    eventually(lambda: checked.ready[-1] is True)
    assert checked.ready[0] is False, "it cannot accept tokens before it has the keys"


def test_scopes_may_be_a_list_under_scp(checked: _Fixture) -> None:
    token = checked.issuer.token(1, "one", scp=["two", 3])

    assert checked.verifier.verify(token).scopes == {"one", "two"}


def test_the_user_may_be_in_another_claim(issuer: Issuer) -> None:
    fixture = _Fixture(issuer, user_claim="shop_user", jwks_url=issuer.jwks_url)
    fixture.start()
    try:
        assert fixture.verifier.verify(issuer.token("abc", shop_user=7)).subject == "7"
        with pytest.raises(TokenInvalid, match="lacks a required claim"):
            fixture.verifier.verify(issuer.token("abc"))
    finally:
        fixture.keys.stop()


def test_without_a_tenant_claim_all_users_are_of_the_default_tenant(checked: _Fixture) -> None:
    assert checked.verifier.verify(checked.issuer.token(1, tenant="acme")).tenant == "default"


@pytest.mark.parametrize("name", [None, "", "ACME", "a/b", "a b", "a" * 65, 7, ["acme"]])
def test_with_a_tenant_claim_a_user_without_a_tenant_is_refused(issuer: Issuer, name: object) -> None:
    fixture = _Fixture(issuer, tenant_claim="tenant")
    fixture.start()
    try:
        assert fixture.verifier.verify(issuer.token(1, tenant="acme-2_b")).tenant == "acme-2_b"
        with pytest.raises(TokenInvalid, match="'tenant' must be the name of a tenant"):
            fixture.verifier.verify(issuer.token(1, tenant=name))
    finally:
        fixture.keys.stop()


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"aud": "another"}, "it is for another audience"),
        ({"aud": None}, "it lacks a required claim"),
        ({"iss": "https://another.example"}, "it is of another issuer"),
        ({"exp": None}, "it lacks a required claim"),
        ({"exp": "soon"}, "it is malformed"),
        ({"nbf": time.time() + 3600}, "it is not valid yet"),
        ({"sub": None}, "it lacks a required claim"),
        ({"sub": True}, "'sub' must be 1 to 255 printable characters"),
        ({"sub": ""}, "'sub' must be 1 to 255 printable characters"),
        ({"sub": "a\nb"}, "'sub' must be 1 to 255 printable characters"),
        ({"sub": "a" * 256}, "'sub' must be 1 to 255 printable characters"),
    ],
)
def test_a_token_with_a_wrong_claim_is_refused(checked: _Fixture, claims: dict[str, Any], why: str) -> None:
    with pytest.raises(TokenInvalid) as refused:
        checked.verifier.verify(checked.issuer.token(1, **claims))

    assert why in refused.value.message


def _encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def _unsigned_part(issuer: Issuer, algorithm: str) -> str:
    """The header and the claims of a token that would be valid."""
    header = {"alg": algorithm, "kid": issuer.key_id, "typ": "JWT"}
    claims = {"iss": issuer.url, "aud": AUDIENCE, "sub": "2", "exp": time.time() + 60}
    return f"{_encoded(json.dumps(header).encode())}.{_encoded(json.dumps(claims).encode())}"


def _without_a_signature(issuer: Issuer) -> str:
    return f"{_unsigned_part(issuer, 'none')}."


def _signed_with_the_public_key(issuer: Issuer) -> str:
    """A well-known attack: an HMAC whose secret is the public key."""
    document = issuer.document("/keys")
    assert document is not None
    (key,) = document["keys"]
    signed = _unsigned_part(issuer, "HS256")
    return f"{signed}.{_encoded(hmac.digest(json.dumps(key).encode(), signed.encode(), 'sha256'))}"


def _with_other_claims(issuer: Issuer) -> str:
    return f"{_unsigned_part(issuer, 'ES256')}.{issuer.token(1).split('.')[2]}"


@pytest.mark.parametrize("forged", [_without_a_signature, _signed_with_the_public_key, _with_other_claims])
def test_a_forged_token_is_refused(checked: _Fixture, forged: Callable[[Issuer], str]) -> None:
    with pytest.raises(TokenInvalid):
        checked.verifier.verify(forged(checked.issuer))


_KEY_ID_IS_A_NUMBER = "eyJhbGciOiJFUzI1NiIsImtpZCI6MX0.e30.x"


@pytest.mark.parametrize("token", ["xyz", "a.b.c", "é.é.é", "." * 50, "x" * 9000, _KEY_ID_IS_A_NUMBER])
def test_a_malformed_token_is_refused_without_being_quoted(checked: _Fixture, token: str) -> None:
    with pytest.raises(TokenInvalid) as refused:
        checked.verifier.verify(token)

    assert token not in refused.value.message


def test_an_expired_token_is_refused(checked: _Fixture) -> None:
    with pytest.raises(TokenExpired):
        checked.verifier.verify(checked.issuer.token(1, seconds=-60))


def test_a_remembered_token_is_refused_once_it_has_expired(checked: _Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    token = checked.issuer.token(1, seconds=30)
    checked.verifier.verify(token)  # fetches the keys
    assert checked.verifier.verify(token) is checked.verifier.verify(token), "it is remembered"

    # Set all clocks of this process a minute ahead, including those that PyJWT reads.
    now, utc = time.time, datetime.now
    monkeypatch.setattr(time, "time", lambda: now() + 60)
    monkeypatch.setattr(
        "jwt.api_jwt.datetime", type("Later", (datetime,), {"now": lambda tz=None: utc(tz) + timedelta(minutes=1)})
    )
    with pytest.raises(TokenExpired):
        checked.verifier.verify(token)


def test_a_rotation_is_noticed_at_the_first_token_with_the_new_key(
    checked: _Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_set, "RETRY_SECONDS", 0.0)
    old = checked.issuer.token(1)
    checked.verifier.verify(old)

    checked.issuer.rotate()

    assert checked.verifier.verify(checked.issuer.token(2)).subject == "2"
    with pytest.raises(TokenInvalid):
        checked.verifier.verify(old)


def test_many_callers_at_a_rotation_cause_one_fetch_and_are_all_served(
    checked: _Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked.verifier.verify(checked.issuer.token(1))
    monkeypatch.setattr(key_set, "RETRY_SECONDS", 0.0)
    fetches = checked.issuer.fetches
    checked.issuer.rotate()
    token = checked.issuer.token(2)
    subjects: list[str] = []

    def verify() -> None:
        subjects.append(checked.verifier.verify(token).subject)

    callers = [threading.Thread(target=verify) for _ in range(30)]

    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)

    assert subjects == ["2"] * 30
    assert checked.issuer.fetches - fetches < 30, "callers share fetches"


def test_unknown_key_ids_cause_no_more_fetches_than_one_in_ten_seconds(checked: _Fixture) -> None:
    checked.verifier.verify(checked.issuer.token(1))
    fetches = checked.issuer.fetches
    began = time.monotonic()

    for number in range(50):
        with pytest.raises(TokenInvalid):
            checked.verifier.verify(checked.issuer.token(1, key_id=f"unknown-{number}"))

    allowed = 1 + int((time.monotonic() - began) / key_set.RETRY_SECONDS)
    assert checked.issuer.fetches - fetches <= allowed


def test_the_last_keys_are_used_while_the_issuer_is_away(checked: _Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    checked.verifier.verify(checked.issuer.token(1))
    monkeypatch.setattr(key_set, "RETRY_SECONDS", 0.0)
    checked.issuer.is_available = False

    assert checked.verifier.verify(checked.issuer.token(2)).subject == "2"
    with pytest.raises(TokenInvalid):
        checked.verifier.verify(checked.issuer.token(1, key_id="unknown"))
    assert checked.verifier.verify(checked.issuer.token(3)).subject == "3", "a failed fetch does not lose the keys"
    assert checked.ready[-1] is True


def test_keys_of_a_day_ago_are_not_used(checked: _Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    checked.verifier.verify(checked.issuer.token(1))
    checked.issuer.is_available = False
    monkeypatch.setattr(key_set, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(key_set, "RETRY_SECONDS", 0.0)

    with pytest.raises(KeySetUnavailable):
        checked.verifier.verify(checked.issuer.token(2))
    assert checked.ready[-1] is False


def test_without_any_keys_it_is_not_ready_and_refuses_for_now(issuer: Issuer) -> None:
    issuer.is_available = False
    fixture = _Fixture(issuer)
    fixture.start()
    try:
        with pytest.raises(KeySetUnavailable):
            fixture.verifier.verify(issuer.token(1))
        assert fixture.ready[-1] is False
    finally:
        fixture.keys.stop()


def test_no_more_than_ten_thousand_tokens_are_remembered(checked: _Fixture) -> None:
    verifier = checked.verifier
    for number in range(REMEMBERED_MAX + 50):
        verifier._remember(number.to_bytes(32), None)  # type: ignore[arg-type]

    assert len(verifier._remembered) == REMEMBERED_MAX
