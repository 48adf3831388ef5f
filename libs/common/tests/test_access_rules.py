"""The access rules of the contract, and the grants file, which states who has which permission."""

from pathlib import Path
from typing import Any

import pytest
import structlog
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from shop_common.identity import grants, grants_file
from shop_common.identity.grants import Grants, GrantsError
from shop_common.identity.grants_file import GrantsFile
from shop_common.identity.rate import Rate
from shop_common.identity.rules import PERMISSIONS, RuleMissing, rules_of
from shop_protos.access.v1 import access_pb2
from shop_protos.order.v1 import order_pb2
from testkit.eventually import eventually


def test_each_rpc_has_the_rule_that_its_contract_states() -> None:
    rules = rules_of(order_pb2.DESCRIPTOR.services_by_name["OrderService"])

    assert rules["/shop.order.v1.OrderService/CreateOrder"].permission == "orders.write"
    assert rules["/shop.order.v1.OrderService/CreateOrder"].own_user_field == "user_id"
    assert rules["/shop.order.v1.OrderService/BatchCreateOrders"].own_user_field == "orders.user_id"
    assert rules["/shop.order.v1.OrderService/GetOrder"].own_user_field == ""
    assert rules["/shop.order.v1.OrderService/GetCaller"].permission == ""


def _service(**access: Any) -> ServiceDescriptor:
    """A service with one RPC, which takes an Access message (without an int64 field) and has this rule."""
    file = descriptor_pb2.FileDescriptorProto(
        name="shop/test.proto", package="shop.test", syntax="proto3", dependency=["shop/access/v1/access.proto"]
    )
    method = file.service.add(name="Test").method.add(
        name="Do", input_type=".shop.access.v1.Access", output_type=".shop.access.v1.Access"
    )
    if access:
        method.options.Extensions[access_pb2.access].CopyFrom(access_pb2.Access(**access))
    pool = descriptor_pool.DescriptorPool()
    for known in (descriptor_pb2.DESCRIPTOR, access_pb2.DESCRIPTOR):
        copy = descriptor_pb2.FileDescriptorProto()
        known.CopyToProto(copy)
        pool.Add(copy)
    pool.Add(file)
    return pool.FindServiceByName("shop.test.Test")


@pytest.mark.parametrize(
    ("access", "fault"),
    [
        ({}, "shop.test.Test.Do has no rule"),
        ({"permission": "orders.eat"}, "shop.test.Test.Do has the unknown permission 'orders.eat'"),
        (
            {"permission": "orders.read", "any_caller": True},
            "shop.test.Test.Do is for any caller, but has the permission 'orders.read'",
        ),
        (
            {"permission": "orders.read", "own_user_field": "user_id"},
            "shop.test.Test.Do has no int64 field 'user_id'",
        ),
        (
            {"permission": "orders.read", "own_user_field": "permission"},
            "shop.test.Test.Do has no int64 field 'permission'",
        ),
        (
            {"permission": "orders.read", "own_user_field": "permission.user_id"},
            "shop.test.Test.Do has no int64 field 'permission.user_id'",
        ),
    ],
)
def test_an_rpc_without_a_rule_that_can_be_applied_is_refused(access: dict[str, Any], fault: str) -> None:
    with pytest.raises(RuleMissing) as refused:
        rules_of(_service(**access))

    assert str(refused.value) == fault


def test_grants_add_up_over_the_scopes_of_a_token(tmp_path: Path) -> None:
    path = tmp_path / "grants.yaml"
    path.write_text(
        """
        workloads:
          spiffe://shop/order-api: [stock.reserve]
          spiffe://shop/idle:
          spiffe://acme/warehouse: {permissions: [inventory.read], tenant: acme}
        scopes:
          shopper: [orders.read, orders.write]
          staff: [orders.any]
        """
    )

    granted = grants.read(path)

    assert granted.of_workload("spiffe://shop/order-api").permissions == {"stock.reserve"}
    assert granted.of_workload("spiffe://shop/idle").permissions == frozenset()
    assert granted.of_workload("spiffe://shop/order-api").tenant == "default"
    assert granted.of_workload("spiffe://acme/warehouse") == grants.Workload(frozenset({"inventory.read"}), "acme")
    assert granted.of_workload("spiffe://shop/unknown").permissions == frozenset()
    assert granted.of_scopes(["shopper", "staff", "unknown"]) == {"orders.read", "orders.write", "orders.any"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("- a", "must be a mapping with workloads, scopes, limits"),
        ("users: {}", "'users' is not a section: workloads, scopes, limits are"),
        ("scopes: [a]", "scopes must be a mapping from names to lists of permissions"),
        ("scopes: {a: orders.read}", "scopes: the permissions of 'a' must be a list"),
        (
            "workloads: {spiffe://a/b: {tenant: A}}",
            "the tenant of 'spiffe://a/b' must be 1 to 64 characters of a-z 0-9 _ -",
        ),
        (
            "workloads: {spiffe://a/b: {rights: []}}",
            "'spiffe://a/b' has 'rights', but may have permissions and tenant only",
        ),
        ("scopes: {1: [orders.read]}", "scopes: the name 1 must be text"),
        ("workloads: {order-api: []}", "workloads: 'order-api' must be a SPIFFE id, spiffe://TRUST-DOMAIN/PATH"),
        (
            "scopes: {a: [orders.eat]}",
            f"scopes: 'a' is granted 'orders.eat', which is not a permission: {', '.join(PERMISSIONS)}",
        ),
        ("scopes: {", "is not YAML"),
        ("limits: 5", "limits must be a mapping with workloads, scopes, keys"),
        ("limits: {users: {}}", "limits: 'users' is not a section: workloads, scopes, keys are"),
        ("limits: {keys: [a]}", "limits: keys must be a mapping from names to limits"),
        (
            "limits: {scopes: {a: {lines_per_second: 1}}}",
            "limits: scopes: 'a' is not in the section scopes of the file",
        ),
        ("limits: {keys: {1: {lines_per_second: 1}}}", "limits: keys: the name 1 must be text"),
        (
            "limits: {keys: {a: {burst: 1}}}",
            "limits: keys: 'a' must be a mapping with lines_per_second, and may have burst",
        ),
        (
            "limits: {keys: {a: {lines_per_second: 1, bursts: 2}}}",
            "limits: keys: 'a' has 'bursts', but may have lines_per_second and burst only",
        ),
        ("limits: {keys: {a: {lines_per_second: 0}}}", "limits: keys: 'a': lines_per_second must be a positive number"),
        ("limits: {keys: {a: {lines_per_second: yes}}}", "'a': lines_per_second must be a positive number"),
        ("limits: {keys: {a: {lines_per_second: .inf}}}", "'a': lines_per_second must be a positive number"),
        ("limits: {keys: {a: {lines_per_second: 1, burst: 0.5}}}", "limits: keys: 'a': burst must be at least 1"),
    ],
)
def test_a_wrong_grants_file_is_refused_with_its_fault(text: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "grants.yaml"
    path.write_text(text)

    with pytest.raises(GrantsError) as refused:
        grants.read(path)

    assert fault in str(refused.value)


def test_a_process_uses_new_grants_unless_they_are_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants_file, "CHECK_SECONDS", 0.01)
    path = tmp_path / "grants.yaml"
    path.write_text("scopes: {shopper: [orders.read]}")
    file = GrantsFile(path)
    used: list[Grants] = []
    with structlog.testing.capture_logs() as lines:
        file.start(used.append)
        replace(path, "scopes: {shopper: [orders.fly]}")
        eventually(lambda: any("'orders.fly'" in line.get("error", "") for line in lines))
        assert used == []

        replace(path, "scopes: {shopper: [orders.read, orders.write]}")
        eventually(lambda: any(line["event"] == "grants reloaded" for line in lines))
        file.stop()

    assert [each.of_scopes(["shopper"]) for each in used] == [{"orders.read", "orders.write"}]
    assert [line["event"] for line in lines] == ["the new grants are not used", "grants reloaded"]


def replace(path: Path, content: str) -> None:
    """Replace the file atomically, as a deployment does."""
    new = path.with_suffix(".new")
    new.write_text(content)
    new.replace(path)


def test_the_grants_file_limits_callers(tmp_path: Path) -> None:
    path = tmp_path / "grants.yaml"
    path.write_text(
        "workloads: {spiffe://shop/load: []}\n"
        "scopes: {shopper: [orders.read]}\n"
        "limits:\n"
        "  workloads: {spiffe://shop/load: {lines_per_second: 1000}}\n"
        "  scopes: {shopper: {lines_per_second: 50, burst: 200}}\n"
        "  keys: {0f3a: {lines_per_second: 0.5}}\n"
    )

    limits = grants.read(path).limits

    assert limits.workloads == {"spiffe://shop/load": Rate(1000, 1000)}
    assert limits.scopes == {"shopper": Rate(50, 200)}
    assert limits.of_key("key:0f3a") == Rate(0.5, 1)
    assert limits.of_key("key:other") is None


def test_a_missing_grants_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GrantsError, match="No such file"):
        grants.read(tmp_path / "missing.yaml")
