"""The checks detect faults: each test injects one fault into the rendered objects."""

import copy
import re
from collections.abc import Callable

import pytest

from tests.kubernetes import checks, relations, security
from tests.kubernetes.checks import Check
from tests.kubernetes.rendered import Cluster, Object, Rendered

Fault = Callable[[Cluster], None]

FOLDER = "tests/kubernetes/all_options"
PRODUCTION = "deploy/kubernetes/overlays/production"


def _pod(cluster: Cluster, name: str) -> Object:
    kind = "Job" if name.endswith("migration") or name == "topics" else "Deployment"
    pod: Object = cluster.named(kind, name)["spec"]["template"]["spec"]
    return pod


def _container(cluster: Cluster, name: str) -> Object:
    container: Object = _pod(cluster, name)["containers"][0]
    return container


def _settings(cluster: Cluster, name: str) -> Object:
    """The data of a ConfigMap, whose name Kustomize ends with a hash."""
    named = re.compile(f"{name}-[a-z0-9]{{10}}")
    (manifest,) = (each for each in cluster.of_kind("ConfigMap") if named.fullmatch(each["metadata"]["name"]))
    data: Object = manifest["data"]
    return data


def _spec(cluster: Cluster, kind: str, name: str) -> Object:
    spec: Object = cluster.named(kind, name)["spec"]
    return spec


def a_field_is_misspelt(cluster: Cluster) -> None:
    _pod(cluster, "order-api")["terminationGracePeriod"] = 35


def a_number_is_a_word(cluster: Cluster) -> None:
    _spec(cluster, "HorizontalPodAutoscaler", "order-api")["minReplicas"] = "three"


def a_config_map_is_missing(cluster: Cluster) -> None:
    _container(cluster, "order-api")["envFrom"][0]["configMapRef"]["name"] = "shop"


def a_secret_has_another_name(cluster: Cluster) -> None:
    _pod(cluster, "event-relay")["volumes"][0]["secret"]["secretName"] = "postgresql"


def readiness_calls_the_other_service(cluster: Cluster) -> None:
    _container(cluster, "order-api")["readinessProbe"]["grpc"]["service"] = "shop.inventory.v1.InventoryService"


def liveness_calls_readiness(cluster: Cluster) -> None:
    _container(cluster, "inventory-api")["livenessProbe"]["grpc"]["service"] = ""


def a_probe_calls_the_wrong_port(cluster: Cluster) -> None:
    _container(cluster, "event-relay")["startupProbe"]["grpc"]["port"] = 50055


def there_is_no_startup_probe(cluster: Cluster) -> None:
    del _container(cluster, "reservation-reaper")["startupProbe"]


def a_setting_is_misspelt(cluster: Cluster) -> None:
    _settings(cluster, "shop")["DRAIN_SECOND"] = "5"


def a_setting_is_out_of_bounds(cluster: Cluster) -> None:
    _settings(cluster, "shop")["GRACE_SECONDS"] = "-1"


def a_database_url_has_a_password_of_its_own(cluster: Cluster) -> None:
    _settings(cluster, "inventory-api")["DATABASE_URL"] = "postgresql://inventory:secret@postgresql:5432/inventory"


def kafka_stays_at_its_default(cluster: Cluster) -> None:
    del _settings(cluster, "kafka")["KAFKA_BOOTSTRAP_SERVERS"]


def a_password_is_in_the_environment(cluster: Cluster) -> None:
    environment = _container(cluster, "order-api")["env"]
    environment[0] = {"name": "DATABASE_PASSWORD", "value": "secret"}


def a_password_file_is_not_mounted(cluster: Cluster) -> None:
    _container(cluster, "order-api")["env"][0]["value"] = "/secrets/password"


def draining_takes_longer(cluster: Cluster) -> None:
    _settings(cluster, "shop")["DRAIN_SECONDS"] = "30"


def a_pod_is_killed_early(cluster: Cluster) -> None:
    _pod(cluster, "order-api")["terminationGracePeriodSeconds"] = 20


def an_image_is_the_latest(cluster: Cluster) -> None:
    for name in ("order-api", "order-api-migration"):
        _container(cluster, name)["image"] = "shop/order-api:latest"


def a_migration_is_of_another_version(cluster: Cluster) -> None:
    _container(cluster, "order-api-migration")["image"] = "shop/order-api:0.0.9"


def a_migration_only_prints_help(cluster: Cluster) -> None:
    _container(cluster, "order-api-migration")["args"] = ["--help"]


def a_migration_is_of_another_database(cluster: Cluster) -> None:
    _settings(cluster, "order-api-migration")["DATABASE_URL"] = "postgresql://orders_owner@postgresql:5432/inventory"


def a_topic_is_missing(cluster: Cluster) -> None:
    container = _container(cluster, "topics")
    container["args"] = [container["args"][0].replace(" order-events.dlq", "")]


def a_process_is_root(cluster: Cluster) -> None:
    _pod(cluster, "inventory-api")["securityContext"]["runAsUser"] = 0


def a_process_keeps_capabilities(cluster: Cluster) -> None:
    del _container(cluster, "event-relay")["securityContext"]["capabilities"]


def a_migration_may_write_to_its_root_file_system(cluster: Cluster) -> None:
    _container(cluster, "inventory-api-migration")["securityContext"]["readOnlyRootFilesystem"] = False


def service_links_are_on(cluster: Cluster) -> None:
    del _pod(cluster, "order-api")["enableServiceLinks"]


def memory_has_no_limit(cluster: Cluster) -> None:
    del _container(cluster, "order-api")["resources"]["limits"]


def a_service_selects_migrations_too(cluster: Cluster) -> None:
    _spec(cluster, "Service", "order-api")["selector"] = {"app.kubernetes.io/part-of": "shop"}


def pods_have_another_name(cluster: Cluster) -> None:
    _spec(cluster, "Deployment", "event-relay")["template"]["metadata"]["labels"]["app.kubernetes.io/name"] = "relay"


def a_service_targets_a_closed_port(cluster: Cluster) -> None:
    _container(cluster, "inventory-api")["ports"][0]["containerPort"] = 50054


def a_service_is_not_headless(cluster: Cluster) -> None:
    del _spec(cluster, "Service", "inventory-api")["clusterIP"]


def a_target_has_another_port(cluster: Cluster) -> None:
    _settings(cluster, "order-api")["INVENTORY_TARGET"] = "inventory-api:50054"


def the_database_moves_to_another_port(cluster: Cluster) -> None:
    _settings(cluster, "order-api")["DATABASE_URL"] = "postgresql://orders@postgresql:6432/orders"


def traces_are_off_and_their_port_is_open(cluster: Cluster) -> None:
    del _settings(cluster, "shop")["OTEL_EXPORTER_OTLP_ENDPOINT"]


def a_policy_opens_all_ports_to_everyone(cluster: Cluster) -> None:
    _spec(cluster, "NetworkPolicy", "order-api")["ingress"][0].pop("from")


def the_reaper_may_not_call_orders(cluster: Cluster) -> None:
    cluster.objects.remove(cluster.named("NetworkPolicy", "shop-calls-order-api"))


def nothing_is_denied(cluster: Cluster) -> None:
    cluster.objects.remove(cluster.named("NetworkPolicy", "shop-default-deny"))


def an_autoscaler_has_no_target(cluster: Cluster) -> None:
    _spec(cluster, "HorizontalPodAutoscaler", "order-api")["scaleTargetRef"]["name"] = "orders"


def replicas_are_fixed_too(cluster: Cluster) -> None:
    _spec(cluster, "Deployment", "order-api")["replicas"] = 3


def a_budget_refuses_every_eviction(cluster: Cluster) -> None:
    _spec(cluster, "PodDisruptionBudget", "event-relay")["maxUnavailable"] = 0


def a_rollout_stops_a_pod_first(cluster: Cluster) -> None:
    _spec(cluster, "Deployment", "order-api")["strategy"]["rollingUpdate"]["maxUnavailable"] = 1


def metrics_are_off(cluster: Cluster) -> None:
    _settings(cluster, "shop")["METRICS_PORT"] = "0"


def an_api_serves_plain_text(cluster: Cluster) -> None:
    _settings(cluster, "api-security")["INSECURE"] = "true"


def clients_need_no_certificate(cluster: Cluster) -> None:
    del _settings(cluster, "api-security")["TLS_CLIENT_CA_PATH"]


def callers_are_not_checked(cluster: Cluster) -> None:
    settings = _settings(cluster, "api-security")
    for name in [name for name in settings if name == "GRANTS_PATH" or name.startswith("OIDC")]:
        del settings[name]


def reflection_is_on(cluster: Cluster) -> None:
    _settings(cluster, "order-api")["REFLECTION"] = "true"


def the_reaper_calls_in_plain_text(cluster: Cluster) -> None:
    settings = _settings(cluster, "reservation-reaper")
    for name in ("TLS_CERT_PATH", "TLS_KEY_PATH", "TLS_CA_PATH"):
        del settings[name]


def a_certificate_is_not_mounted(cluster: Cluster) -> None:
    for holder, key in ((_container(cluster, "order-api"), "volumeMounts"), (_pod(cluster, "order-api"), "volumes")):
        holder[key] = [each for each in holder[key] if each["name"] != "tls"]


def the_grants_are_not_mounted(cluster: Cluster) -> None:
    for mount in _container(cluster, "inventory-api")["volumeMounts"]:
        mount["mountPath"] = mount["mountPath"].replace("/config/", "/settings/")


def a_certificate_has_the_identity_of_another(cluster: Cluster) -> None:
    _spec(cluster, "Certificate", "reservation-reaper")["uris"] = ["spiffe://shop/order-api"]


def a_certificate_lacks_the_name_of_its_service(cluster: Cluster) -> None:
    _spec(cluster, "Certificate", "inventory-api")["dnsNames"] = ["inventory.example.com"]


def a_certificate_is_missing(cluster: Cluster) -> None:
    cluster.objects.remove(cluster.named("Certificate", "order-api"))


def order_api_may_do_maintenance_too(cluster: Cluster) -> None:
    data = _settings(cluster, "grants")
    data["grants.yaml"] = data["grants.yaml"].replace(
        "[stock.reserve, delegate]", "[stock.reserve, delegate, maintenance]"
    )


def inventory_api_may_not_read_keys(cluster: Cluster) -> None:
    data = _settings(cluster, "grants")
    data["grants.yaml"] = data["grants.yaml"].replace("[keys.read]", "[]")


def an_api_uses_the_owners_role(cluster: Cluster) -> None:
    url = _settings(cluster, "order-api-migration")["DATABASE_URL"]
    _settings(cluster, "order-api")["DATABASE_URL"] = url


def an_api_mounts_the_password_of_the_owner(cluster: Cluster) -> None:
    _pod(cluster, "order-api")["volumes"][0]["secret"]["secretName"] = "orders-database-owner"


def a_client_may_be_in_any_namespace(cluster: Cluster) -> None:
    _spec(cluster, "NetworkPolicy", "order-api")["ingress"][0]["from"][0]["namespaceSelector"] = {}


def one_label_opens_both_apis(cluster: Cluster) -> None:
    for name in ("inventory-api", "order-api"):
        peer = _spec(cluster, "NetworkPolicy", name)["ingress"][0]["from"][0]
        peer["podSelector"]["matchLabels"] = {"shop-client": "true"}


def prometheus_may_be_in_any_namespace(cluster: Cluster) -> None:
    _spec(cluster, "NetworkPolicy", "shop-metrics")["ingress"][0]["from"][0]["namespaceSelector"] = {}


def the_identity_provider_cannot_be_reached(cluster: Cluster) -> None:
    cluster.objects.remove(cluster.named("NetworkPolicy", "shop-identity-provider"))


DETECTED_BY: dict[Fault, Check] = {
    a_field_is_misspelt: checks.objects_match_their_schemas,
    a_number_is_a_word: checks.objects_match_their_schemas,
    a_config_map_is_missing: checks.references_are_complete,
    a_secret_has_another_name: checks.references_are_complete,
    readiness_calls_the_other_service: checks.probes_call_served_health_services,
    liveness_calls_readiness: checks.probes_call_served_health_services,
    a_probe_calls_the_wrong_port: checks.probes_call_served_health_services,
    there_is_no_startup_probe: checks.probes_call_served_health_services,
    a_setting_is_misspelt: checks.settings_are_accepted,
    a_setting_is_out_of_bounds: checks.settings_are_accepted,
    a_database_url_has_a_password_of_its_own: checks.settings_are_accepted,
    kafka_stays_at_its_default: checks.settings_are_accepted,
    a_password_is_in_the_environment: checks.passwords_come_from_secrets,
    a_password_file_is_not_mounted: checks.passwords_come_from_secrets,
    draining_takes_longer: checks.there_is_time_to_drain,
    a_pod_is_killed_early: checks.there_is_time_to_drain,
    an_image_is_the_latest: checks.images_are_pinned,
    a_migration_is_of_another_version: checks.images_are_pinned,
    a_migration_only_prints_help: checks.databases_are_migrated,
    a_migration_is_of_another_database: checks.databases_are_migrated,
    a_topic_is_missing: checks.topics_match_the_contract,
    a_process_is_root: checks.pods_are_restricted,
    a_process_keeps_capabilities: checks.pods_are_restricted,
    a_migration_may_write_to_its_root_file_system: checks.pods_are_restricted,
    service_links_are_on: checks.pods_are_restricted,
    memory_has_no_limit: checks.pods_have_resources,
    a_service_selects_migrations_too: relations.selectors_match_one_workload,
    pods_have_another_name: relations.selectors_match_one_workload,
    a_service_targets_a_closed_port: relations.services_target_open_ports,
    a_service_is_not_headless: relations.services_target_open_ports,
    a_target_has_another_port: relations.calls_reach_services,
    the_database_moves_to_another_port: relations.network_policies_allow_exactly_what_is_needed,
    traces_are_off_and_their_port_is_open: relations.network_policies_allow_exactly_what_is_needed,
    a_policy_opens_all_ports_to_everyone: relations.network_policies_allow_exactly_what_is_needed,
    the_reaper_may_not_call_orders: relations.network_policies_allow_exactly_what_is_needed,
    nothing_is_denied: relations.network_policies_allow_exactly_what_is_needed,
    an_autoscaler_has_no_target: relations.autoscalers_are_valid,
    replicas_are_fixed_too: relations.autoscalers_are_valid,
    a_budget_refuses_every_eviction: relations.rollouts_and_evictions_complete,
    a_rollout_stops_a_pod_first: relations.rollouts_and_evictions_complete,
    metrics_are_off: relations.metrics_are_scraped,
    an_api_serves_plain_text: security.apis_authenticate_their_callers,
    clients_need_no_certificate: security.apis_authenticate_their_callers,
    callers_are_not_checked: security.apis_authenticate_their_callers,
    reflection_is_on: security.apis_authenticate_their_callers,
    the_reaper_calls_in_plain_text: security.callers_have_certificates,
    a_certificate_is_not_mounted: security.files_of_settings_are_mounted,
    the_grants_are_not_mounted: security.files_of_settings_are_mounted,
    a_certificate_has_the_identity_of_another: security.certificates_have_identities,
    a_certificate_lacks_the_name_of_its_service: security.certificates_have_identities,
    a_certificate_is_missing: security.certificates_have_identities,
    order_api_may_do_maintenance_too: security.processes_have_the_permissions_that_they_need,
    inventory_api_may_not_read_keys: security.processes_have_the_permissions_that_they_need,
    an_api_uses_the_owners_role: security.databases_have_a_role_for_each_use,
    an_api_mounts_the_password_of_the_owner: security.databases_have_a_role_for_each_use,
    a_client_may_be_in_any_namespace: relations.network_policies_allow_exactly_what_is_needed,
    one_label_opens_both_apis: relations.network_policies_allow_exactly_what_is_needed,
    prometheus_may_be_in_any_namespace: relations.network_policies_allow_exactly_what_is_needed,
    the_identity_provider_cannot_be_reached: relations.network_policies_allow_exactly_what_is_needed,
}


@pytest.mark.parametrize("fault", DETECTED_BY, ids=lambda fault: fault.__name__)
def test_a_fault_is_detected(rendered: Rendered, fault: Fault) -> None:
    """test_rendered_objects shows that the check passes without the fault."""
    cluster = Cluster(copy.deepcopy(rendered(FOLDER).objects))

    fault(cluster)

    assert list(DETECTED_BY[fault](cluster)) != []


def test_a_kafka_in_plain_text_is_detected(rendered: Rendered) -> None:
    cluster = Cluster(copy.deepcopy(rendered(PRODUCTION).objects))

    _settings(cluster, "kafka")["KAFKA_SECURITY_PROTOCOL"] = "PLAINTEXT"

    assert list(security.kafka_clients_are_authenticated(cluster)) != []


def test_a_shared_user_of_kafka_is_detected(rendered: Rendered) -> None:
    cluster = Cluster(copy.deepcopy(rendered(PRODUCTION).objects))

    for volume in _pod(cluster, "order-api")["volumes"]:
        if volume["name"] == "kafka":
            volume["secret"]["secretName"] = "kafka-event-relay"

    assert list(security.kafka_clients_are_authenticated(cluster)) != []


def test_a_database_that_is_not_verified_is_detected(rendered: Rendered) -> None:
    cluster = Cluster(copy.deepcopy(rendered(PRODUCTION).objects))
    settings = _settings(cluster, "order-api")

    settings["DATABASE_URL"] = settings["DATABASE_URL"].replace("verify-full", "require")

    assert list(security.databases_are_verified(cluster)) != []
