"""Runs all checks on every overlay."""

from pathlib import Path

import pytest
import yaml

from tests.kubernetes import checks, relations, security
from tests.kubernetes.checks import Check
from tests.kubernetes.rendered import Rendered

ROOT = Path(__file__).resolve().parents[2]

BASE = "deploy/kubernetes/base"
LOCAL = "deploy/kubernetes/overlays/local"
PRODUCTION = "deploy/kubernetes/overlays/production"
ALL_OPTIONS = "tests/kubernetes/all_options"

CHECKS: list[Check] = [
    checks.objects_match_their_schemas,
    checks.references_are_complete,
    checks.probes_call_served_health_services,
    checks.settings_are_accepted,
    checks.passwords_come_from_secrets,
    checks.there_is_time_to_drain,
    checks.images_are_pinned,
    checks.databases_are_migrated,
    checks.topics_match_the_contract,
    checks.pods_are_restricted,
    checks.pods_have_resources,
    relations.selectors_match_one_workload,
    relations.services_target_open_ports,
    relations.calls_reach_services,
    relations.network_policies_allow_exactly_what_is_needed,
    relations.autoscalers_are_valid,
    relations.rollouts_and_evictions_complete,
    relations.metrics_are_scraped,
    security.files_of_settings_are_mounted,
]

SECURITY_CHECKS: list[Check] = [
    security.apis_authenticate_their_callers,
    security.callers_have_certificates,
    security.certificates_have_identities,
    security.processes_have_the_permissions_that_they_need,
    security.databases_have_a_role_for_each_use,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("folder", [BASE, LOCAL, PRODUCTION, ALL_OPTIONS])
def test_the_rendered_objects_pass_the_check(rendered: Rendered, folder: str, check: Check) -> None:
    assert list(check(rendered(folder))) == []


@pytest.mark.parametrize("check", SECURITY_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("folder", [BASE, PRODUCTION, ALL_OPTIONS])
def test_every_overlay_except_the_trial_is_secure(rendered: Rendered, folder: str, check: Check) -> None:
    assert list(check(rendered(folder))) == []


@pytest.mark.parametrize("check", [security.databases_are_verified, security.kafka_clients_are_authenticated])
def test_production_verifies_its_servers(rendered: Rendered, check: Check) -> None:
    assert list(check(rendered(PRODUCTION))) == []


def test_only_the_trial_serves_plain_text(rendered: Rendered) -> None:
    """Shows too that the checks above notice plain text."""
    assert list(security.apis_authenticate_their_callers(rendered(LOCAL))) != []


@pytest.mark.parametrize("folder", [BASE, PRODUCTION])
def test_no_password_is_rendered_for_production(rendered: Rendered, folder: str) -> None:
    assert rendered(folder).of_kind("Secret") == []


@pytest.mark.parametrize("folder", [BASE, PRODUCTION])
def test_both_apis_are_scaled_by_load_in_production(rendered: Rendered, folder: str) -> None:
    scaled = [scaler["metadata"]["name"] for scaler in rendered(folder).of_kind("HorizontalPodAutoscaler")]

    assert sorted(scaled) == ["inventory-api", "order-api"]


def test_a_production_overlay_names_a_registry_and_a_version(rendered: Rendered) -> None:
    images = [workload.container["image"] for workload in checks.deployments(rendered(PRODUCTION))]

    assert all("/shop/" in image and not image.endswith(":dev") for image in images)


def test_the_namespace_refuses_pods_that_ask_for_more_rights() -> None:
    namespace = yaml.safe_load((ROOT / "deploy/kubernetes/namespace.yaml").read_text())
    guide = (ROOT / "docs/kubernetes.md").read_text()

    assert namespace["kind"] == "Namespace"
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert "kubectl apply -f deploy/kubernetes/namespace.yaml" in guide
    assert f"kubectl apply -n {namespace['metadata']['name']} -k" in guide
