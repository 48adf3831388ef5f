"""Both APIs accept the tokens of Keycloak, set up as in examples/keycloak, and survive what happens to a provider."""

from urllib.error import HTTPError

import grpc
import jwt
import pytest

from devstack.servers.keycloak import Keycloak
from devstack.stack import READY_SECONDS, Stack
from shop_common.identity.key_set import RETRY_SECONDS
from testkit.calls import Outcome, refusal
from testkit.eventually import eventually
from tests.oidc.clients import UNITS, Clients, load, more_calls
from tests.oidc.realm import ADA, ALICE, ANOTHER_AUDIENCE, BOB, SHORT_LIVED, Realm

PRODUCT = 7
ACCEPTED = Outcome(grpc.StatusCode.OK)
INVALID = Outcome(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
EXPIRED = Outcome(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")


@pytest.fixture(scope="module")
def stock(clients: Clients, realm: Realm) -> int:
    """A product with stock."""
    assert clients.add_stock(PRODUCT, realm.token("stella", "staff")) == ACCEPTED
    return PRODUCT


def _lacks(permission: str) -> Outcome:
    return Outcome(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING", {"permission": permission})


def _key_id(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


def _wait_until_the_apis_may_fetch_keys(keycloak: Keycloak) -> None:
    # A token with an unknown key makes an API fetch the keys, but at most once in this time.
    eventually(lambda: keycloak.seconds_since_keys_were_requested > RETRY_SECONDS + 1)


def test_the_scopes_of_a_token_decide_what_its_user_may_do(clients: Clients, realm: Realm, stock: int) -> None:
    shopper, staff = realm.token("alice"), realm.token("stella", "staff")

    order = clients.create_order(stock, ALICE, shopper)

    assert clients.add_stock(8, shopper) == _lacks("inventory.write")
    assert order.id in clients.orders_of(staff)


def test_a_user_without_the_role_does_not_get_the_scope_that_it_requests(clients: Clients, realm: Realm) -> None:
    token = realm.token("alice", "staff")

    assert clients.add_stock(8, token) == _lacks("inventory.write")


def test_the_user_claim_decides_whose_orders_a_user_sees(clients: Clients, realm: Realm, stock: int) -> None:
    alice, bob = realm.token("alice"), realm.token("bob")

    order = clients.create_order(stock, ALICE, alice)

    assert order.id in clients.orders_of(alice)
    assert order.id not in clients.orders_of(bob)
    assert refusal(lambda: clients.create_order(stock, BOB, alice)) == _lacks("orders.any")


def test_the_tenant_claim_decides_whose_data_a_user_sees(clients: Clients, realm: Realm, stock: int) -> None:
    # Stella and Ada may see all orders, each of her own tenant.
    stella, ada = realm.token("stella", "staff"), realm.token("ada", "staff")
    assert clients.add_stock(stock, ada) == ACCEPTED  # the product id exists in the other tenant

    hers = clients.create_order(stock, ALICE, realm.token("alice"))
    other = clients.create_order(stock, ADA, ada)

    assert hers.id in clients.orders_of(stella)
    assert clients.orders_of(ada) == {other.id}
    assert clients.available(stock, ada) == UNITS - 1


@pytest.mark.parametrize("user", ["norman", "mallory", "nadia"])
def test_a_user_without_a_valid_tenant_or_without_an_id_is_refused(clients: Clients, realm: Realm, user: str) -> None:
    assert clients.both(realm.token(user)) == [INVALID, INVALID]


def test_a_token_for_another_application_is_refused(clients: Clients, realm: Realm) -> None:
    assert clients.both(realm.token("alice", client=ANOTHER_AUDIENCE)) == [INVALID, INVALID]


def test_a_token_of_another_realm_is_refused(clients: Clients, keycloak: Keycloak) -> None:
    another = Realm(keycloak, "another", users=["stella"])

    assert clients.both(another.token("stella", "staff")) == [INVALID, INVALID]


def test_a_token_ends_when_the_provider_said_so(clients: Clients, realm: Realm) -> None:
    token = realm.token("alice", client=SHORT_LIVED)

    eventually(lambda: clients.both(token) == [EXPIRED, EXPIRED])


def test_no_call_fails_while_the_realm_changes_its_key(clients: Clients, realm: Realm, keycloak: Keycloak) -> None:
    old = realm.token("alice")
    with load(clients, old) as with_old:
        eventually(more_calls(with_old, 20))
        _wait_until_the_apis_may_fetch_keys(keycloak)
        realm.rotate()
        new = realm.token("alice")
        assert _key_id(new) != _key_id(old)
        with load(clients, new) as with_new:
            eventually(more_calls(with_new, 20))
            eventually(more_calls(with_old, 20))

    assert (with_old.failures, with_new.failures) == ([], [])


def test_tokens_of_a_removed_key_are_refused(clients: Clients, realm: Realm, keycloak: Keycloak) -> None:
    stolen = realm.token("alice")
    assert clients.both(stolen) == [ACCEPTED, ACCEPTED]
    _wait_until_the_apis_may_fetch_keys(keycloak)

    realm.rotate()
    realm.revoke_key(_key_id(stolen))

    # The first token of the new key makes each API fetch the keys, so that it forgets the removed one.
    assert clients.both(realm.token("alice")) == [ACCEPTED, ACCEPTED]
    assert clients.both(stolen) == [INVALID, INVALID]


def test_calls_continue_while_the_provider_is_down(
    clients: Clients, realm: Realm, keycloak: Keycloak, apis: Stack
) -> None:
    remembered, first_used_later = realm.token("alice"), realm.token("bob")
    assert clients.both(remembered) == [ACCEPTED, ACCEPTED]

    keycloak.stop()
    try:
        with pytest.raises(OSError, match="refused"):
            realm.token("alice")
        assert clients.both(remembered) == [ACCEPTED, ACCEPTED]
        assert clients.both(first_used_later) == [ACCEPTED, ACCEPTED]

        # A process that starts now has no keys. It is not ready, and can neither accept nor refuse a token.
        apis.order_api.stop()
        apis.order_api.start()
        eventually(lambda: clients.list_orders(remembered).reason == "KEY_SET_UNAVAILABLE")
        assert not apis.order_api.is_ready()
        assert clients.list_items(remembered) == ACCEPTED
    finally:
        keycloak.start()

    apis.order_api.wait_ready(READY_SECONDS)
    assert clients.both(remembered) == [ACCEPTED, ACCEPTED]
    assert clients.both(realm.token("alice")) == [ACCEPTED, ACCEPTED]


def test_the_example_realm_gives_tokens_to_no_password(keycloak: Keycloak, realm: Realm) -> None:
    """The example's client is for browsers only: users type their passwords into Keycloak's page, never into an
    application.
    """
    with pytest.raises(HTTPError, match=r"HTTP Error 40[01]"):
        realm.token("alice", client="shop-web")
