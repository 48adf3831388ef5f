"""Finds environment variables that look like a setting but are unknown: misspelt, or of another version.

Unknown variables are logged and not rejected, because other programs share the environment.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from shop_common.environment.process_settings import ApiSettings
from shop_common.environment.settings import Settings

# Settings that only some processes read. Several processes may share an environment, and each knows only its own
# settings. This list is literal because a process without a database must not import the settings of databases.
_OF_SOME_PROCESSES = [
    "ABANDONED_GRACE_SECONDS",
    "AUDIT",
    "CALL_SECONDS",
    "CONSUMER_ENABLED",
    "DATABASE_PASSWORD",
    "DATABASE_PASSWORD_FILE",
    "DATABASE_URL",
    "GRANTS_PATH",
    "HEALTH_PORT",
    "HISTORY_KEPT_HOURS",
    "INVENTORY_CALL_SECONDS",
    "INVENTORY_DATABASE_PASSWORD",
    "INVENTORY_DATABASE_PASSWORD_FILE",
    "INVENTORY_DATABASE_URL",
    "INVENTORY_TARGET",
    "KAFKA_BOOTSTRAP_SERVERS",
    "KAFKA_CA_PATH",
    "KAFKA_CERT_PATH",
    "KAFKA_KEY_PATH",
    "KAFKA_OPTIONS",
    "KAFKA_SASL_MECHANISM",
    "KAFKA_SASL_PASSWORD",
    "KAFKA_SASL_PASSWORD_FILE",
    "KAFKA_SASL_USERNAME",
    "KAFKA_SASL_USERNAME_FILE",
    "KAFKA_SECURITY_PROTOCOL",
    "LEASE_SECONDS",
    "OIDC_AUDIENCE",
    "OIDC_ISSUER",
    "OIDC_JWKS_URL",
    "OIDC_TENANT_CLAIM",
    "OIDC_USER_CLAIM",
    "ORDERS_DATABASE_PASSWORD",
    "ORDERS_DATABASE_PASSWORD_FILE",
    "ORDERS_DATABASE_URL",
    "ORDER_TARGET",
    "PARTIAL_CHANGES_ENABLED",
    "WITHHOLDING_ENABLED",
    "POLL_SECONDS",
    "PURGE_CRON",
    "PURGE_INTERVAL_SECONDS",
    "REAP_BATCH_MAX",
    "REAP_INTERVAL_SECONDS",
    "RESERVATION_TTL",
    "TLS_CA_PATH",
    "VERIFY_INTERVAL_SECONDS",
]

SETTINGS_OF_ALL = {*_OF_SOME_PROCESSES, *(name.upper() for name in ApiSettings.model_fields)}

# First words of our settings. Variables of other programs, or of Kubernetes services, may begin with the same words.
_SHARED_FIRST_WORDS = {
    "CALL", "GRPC", "HEALTH", "INVENTORY", "KAFKA", "LISTEN", "LOG", "METRICS", "ORDER", "ORDERS", "OTEL", "TLS",
}  # fmt: skip

# Kafka's own scripts read this variable. Its name is similar to KAFKA_OPTIONS.
_FOREIGN_VARIABLES = {"KAFKA_OPTS"}


def unknown(settings: type[Settings], environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the name of each unknown variable, with the most similar setting of this process."""
    own = {name.upper() for name in settings.model_fields} - {"WORKER_PIPE"}
    for variable, value in environment.items():
        name = variable.upper().removesuffix("_FILE")
        if name in own | SETTINGS_OF_ALL | _FOREIGN_VARIABLES or _is_service_link(name, value):
            continue
        word = name.partition("_")[0]
        same_word = {each for each in own if each.startswith(f"{word}_")} if word not in _SHARED_FIRST_WORDS else set()
        # OpenTelemetry has a hundred variables, some of which are similar to ours.
        similarity_min = 0.0 if same_word else 0.95 if word == "OTEL" else 0.85
        nearest = get_close_matches(name, same_word or own, n=1, cutoff=similarity_min)
        # For example, MY_DATABASE_URL belongs to another program, and is not a misspelt DATABASE_URL.
        if nearest and not name.endswith(f"_{nearest[0]}"):
            yield variable, nearest[0]


def _is_service_link(name: str, value: str) -> bool:
    """Return whether this is one of the variables with which Kubernetes describes services to a container."""
    return "_SERVICE_HOST" in name or "_SERVICE_PORT" in name or value.startswith(("tcp://", "udp://"))
