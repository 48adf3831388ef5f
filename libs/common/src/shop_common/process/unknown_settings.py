"""Variables of the environment that look like a setting and are none: misspelt, or of another version.

They are told of, not refused: an environment is shared with other programs.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from shop_common.environment.settings import ApiSettings, Settings

# What some processes read: one environment may serve several of them, and none knows the settings of another.
# Nor does a process without a database load what those of a database need.
_OF_SOME_PROCESSES = [
    "ABANDONED_GRACE_SECONDS",
    "CALL_SECONDS",
    "CONSUMER_ENABLED",
    "DATABASE_PASSWORD",
    "DATABASE_URL",
    "HEALTH_PORT",
    "HISTORY_KEPT_HOURS",
    "INVENTORY_CALL_SECONDS",
    "INVENTORY_DATABASE_PASSWORD",
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
    "ORDERS_DATABASE_PASSWORD",
    "ORDERS_DATABASE_URL",
    "ORDER_TARGET",
    "POLL_SECONDS",
    "PURGE_CRON",
    "PURGE_INTERVAL_SECONDS",
    "REAP_BATCH_MAX",
    "REAP_INTERVAL_SECONDS",
    "RESERVATION_TTL",
    "TLS_CA_PATH",
]

SETTINGS_OF_ALL = {*_OF_SOME_PROCESSES, *(name.upper() for name in ApiSettings.model_fields)}

# First words of settings that begin the variables of other programs, or of services of Kubernetes, too.
_WORDS_OF_OTHERS = {
    "CALL", "GRPC", "HEALTH", "INVENTORY", "KAFKA", "LISTEN", "LOG", "METRICS", "ORDER", "ORDERS", "OTEL", "TLS",
}  # fmt: skip

# Read by Kafka's own scripts, and much like KAFKA_OPTIONS.
_VARIABLES_OF_OTHERS = {"KAFKA_OPTS"}


def unknown(settings: type[Settings], environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The name of each such variable, with the setting of this process that is nearest to it."""
    own = {name.upper() for name in settings.model_fields} - {"WORKER_PIPE"}
    for variable, value in environment.items():
        name = variable.upper().removesuffix("_FILE")
        if name in own | SETTINGS_OF_ALL | _VARIABLES_OF_OTHERS or _is_service_link(name, value):
            continue
        word = name.partition("_")[0]
        kin = {one for one in own if one.startswith(f"{word}_")} if word not in _WORDS_OF_OTHERS else set()
        # OpenTelemetry has a hundred variables, some of which are much like ours.
        similarity_min = 0.0 if kin else 0.95 if word == "OTEL" else 0.85
        nearest = get_close_matches(name, kin or own, n=1, cutoff=similarity_min)
        # MY_DATABASE_URL is another program's DATABASE_URL.
        if nearest and not name.endswith(f"_{nearest[0]}"):
            yield variable, nearest[0]


def _is_service_link(name: str, value: str) -> bool:
    """Whether this is how Kubernetes tells a container of the services beside it."""
    return "_SERVICE_HOST" in name or "_SERVICE_PORT" in name or value.startswith(("tcp://", "udp://"))
