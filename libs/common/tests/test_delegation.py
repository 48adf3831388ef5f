"""A delegate acts for the tenants and users that a call names. Nobody else may name them."""

import pytest

from shop_common.identity.authenticator import Authenticator, delegated, delegation_headers
from shop_common.identity.caller import ANYONE, Caller
from shop_common.identity.errors import DelegationInvalid, PermissionMissing
from shop_common.identity.grants import Grants, Workload

ORDERS = "spiffe://shop/order-api"
WAREHOUSE = "spiffe://acme/warehouse"
AUTHENTICATOR = Authenticator(
    Grants(
        workloads={
            ORDERS: Workload(frozenset({"stock.reserve", "delegate"})),
            WAREHOUSE: Workload(frozenset({"stock.reserve"}), "acme"),
        }
    ),
    None,
)


def test_a_workload_is_of_the_tenant_of_its_grant() -> None:
    assert AUTHENTICATOR.caller((), WAREHOUSE) == Caller(WAREHOUSE, frozenset({"stock.reserve"}), None, "acme")
    assert AUTHENTICATOR.caller((), ORDERS).tenant == "default"


def test_a_delegate_acts_for_the_tenant_and_the_user_in_the_headers() -> None:
    caller = AUTHENTICATOR.caller([("shop-tenant", "acme"), ("shop-subject", "42")], ORDERS)

    assert (caller.name, caller.tenant, caller.subject) == (ORDERS, "acme", "42")


@pytest.mark.parametrize(
    "caller",
    [
        Caller("anyone", frozenset()),
        Caller("user:42", frozenset(), "42"),
        Caller("user:42", frozenset(), "42", "acme"),
        Caller("user:Zoë 100%", frozenset(), "Zoë 100%", "acme"),
        Caller(WAREHOUSE, frozenset(), None, "acme"),
    ],
)
def test_the_headers_of_a_delegate_name_its_caller(caller: Caller) -> None:
    headers = delegation_headers(caller)

    acting = AUTHENTICATOR.caller(headers, ORDERS)

    assert (acting.tenant, acting.subject) == (caller.tenant, caller.subject)
    assert all(str(value).isascii() for _, value in headers)


@pytest.mark.parametrize("header", [("shop-tenant", "default"), ("shop-tenant", "other"), ("shop-subject", "42")])
def test_other_callers_may_name_neither_a_tenant_nor_a_user(header: tuple[str, str]) -> None:
    with pytest.raises(PermissionMissing) as refused:
        AUTHENTICATOR.caller([header], WAREHOUSE)

    assert refused.value.metadata() == {"permission": "delegate"}


@pytest.mark.parametrize(
    "headers",
    [
        [("shop-tenant", "ACME")],
        [("shop-tenant", "a" * 65)],
        [("shop-tenant", "acme"), ("shop-tenant", "other")],
        [("shop-subject", "a" * 256)],
        [("shop-subject", "a%0Ab")],
    ],
)
def test_a_malformed_name_is_refused(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(DelegationInvalid):
        AUTHENTICATOR.caller(headers, ORDERS)


def test_without_identities_there_is_only_the_default_tenant() -> None:
    assert delegated(ANYONE, "", "42").tenant == "default"
    with pytest.raises(PermissionMissing):
        delegated(ANYONE, "acme", "")


def test_only_the_delegate_makes_reservations_of_the_order_service() -> None:
    assert AUTHENTICATOR.caller((), ORDERS).reservation_owner == ""
    assert AUTHENTICATOR.caller((), WAREHOUSE).reservation_owner == WAREHOUSE
    assert ANYONE.reservation_owner == ""
