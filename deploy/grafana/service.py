"""The service dashboard: calls, batches, connections, relay, consumers, reaper and processes."""

from panels import Panel, Query, Row, TracesOf
from promql import MEDIAN_AND_P99, per_second, quantile

_BY_METHOD = TracesOf(service="${__field.labels.job}", operation="${__field.labels.rpc_method}")
_BY_REASON = TracesOf(
    service="${__field.labels.job}",
    operation="${__field.labels.rpc_method}",
    tags="error.type=${__field.labels.error_type}",
)

ROWS = [
    Row(
        "Calls",
        [
            Panel(
                "Rate",
                "All calls: successful, refused and failed.",
                "reqps",
                [
                    Query(
                        per_second("rpc_server_call_duration_seconds_count", "job, rpc_method"),
                        "{{job}} {{rpc_method}}",
                    )
                ],
                width=12,
                traces=_BY_METHOD,
            ),
            Panel(
                "Refused and failed, by reason",
                "Failures are UNAVAILABLE, RESOURCE_EXHAUSTED, INTERNAL and CONTENTION; all others are refusals.",
                "reqps",
                [
                    Query(
                        per_second("rpc_server_errors_total", "job, rpc_method, rpc_response_status_code, error_type"),
                        "{{job}} {{rpc_method}}: {{rpc_response_status_code}} {{error_type}}",
                    )
                ],
                width=12,
                traces=_BY_REASON,
            ),
            Panel(
                "Duration, 99th percentile",
                "The points are single calls: click one for its trace.",
                "s",
                [
                    Query(
                        quantile(0.99, "rpc_server_call_duration_seconds", "job, rpc_method"),
                        "{{job}} {{rpc_method}}",
                        exemplars=True,
                    )
                ],
                width=12,
                traces=_BY_METHOD,
            ),
            Panel(
                "Duration, median",
                "The wait for a batch, and the batch itself.",
                "s",
                [Query(quantile(0.5, "rpc_server_call_duration_seconds", "job, rpc_method"), "{{job}} {{rpc_method}}")],
                width=12,
                traces=_BY_METHOD,
            ),
            Panel(
                "Error budget: share of failed calls",
                "The objective is 0.1 %. Above the lines an alert pages: 1.44 % in an hour, 0.6 % in six hours.",
                "percentunit",
                [
                    Query("job:rpc_server_failures:ratio5m", "{{job}} 5 min"),
                    Query("job:rpc_server_failures:ratio1h", "{{job}} 1 h"),
                    Query("job:rpc_server_failures:ratio6h", "{{job}} 6 h"),
                ],
                width=12,
                lines=[0.0144, 0.006],
            ),
            Panel(
                "Calls between our processes, 99th percentile",
                "Includes retries. If longer than the duration at the server: connections, or an unavailable replica.",
                "s",
                [
                    Query(
                        quantile(0.99, "rpc_client_call_duration_seconds", "job, rpc_method"), "{{job}} {{rpc_method}}"
                    )
                ],
                width=12,
                traces=_BY_METHOD,
            ),
        ],
    ),
    Row(
        "Coalescing",
        [
            Panel(
                "Calls per batch",
                "Mean. It grows when calls arrive faster than batches finish.",
                "none",
                [
                    Query(
                        f"{per_second('shop_coalescer_batch_requests_sum', 'job, coalescer')}"
                        f" / {per_second('shop_coalescer_batch_requests_count', 'job, coalescer')}",
                        "{{job}} {{coalescer}}",
                    )
                ],
                width=6,
            ),
            Panel(
                "Calls waiting for a batch",
                "",
                "none",
                [Query("sum by (job, coalescer) (shop_coalescer_queue_requests)", "{{job}} {{coalescer}}")],
                width=6,
            ),
            Panel(
                "Wait for a batch, 99th percentile",
                "",
                "s",
                [Query(quantile(0.99, "shop_coalescer_wait_seconds", "job, coalescer"), "{{job}} {{coalescer}}")],
                width=6,
            ),
            Panel(
                "Duration of a batch, 99th percentile",
                "Its statements and its commit: the time in the database.",
                "s",
                [Query(quantile(0.99, "shop_coalescer_flush_seconds", "job, coalescer"), "{{job}} {{coalescer}}")],
                width=6,
            ),
        ],
    ),
    Row(
        "Database connections",
        [
            Panel(
                "Used, idle and allowed connections",
                "",
                "none",
                [
                    Query("sum by (job, pool, state) (db_client_connection_count)", "{{job}} {{pool}} {{state}}"),
                    Query("sum by (job, pool) (db_client_connection_max)", "{{job}} {{pool}} allowed"),
                ],
                width=12,
            ),
            Panel(
                "Requests waiting for a connection",
                "",
                "none",
                [Query("sum by (job, pool) (db_client_connection_pending_requests)", "{{job}} {{pool}}")],
                width=12,
            ),
        ],
    ),
    Row(
        "Relay",
        [
            Panel(
                "Age of the oldest waiting event",
                "Above one minute an alert pages.",
                "s",
                [Query("max by (database) (shop_outbox_oldest_event_age_seconds)", "{{database}}")],
                width=8,
                lines=[60],
            ),
            Panel(
                "Waiting events",
                "",
                "none",
                [Query("max by (database) (shop_outbox_pending_events)", "{{database}}")],
                width=8,
            ),
            Panel(
                "Events shipped",
                "",
                "cps",
                [Query(per_second("shop_relay_shipped_events_total", "database"), "{{database}}")],
                width=8,
            ),
            Panel(
                "From commit to acknowledgement",
                "",
                "s",
                [
                    Query(quantile(q, "shop_relay_delay_seconds", "database"), f"{{{{database}}}} {name}")
                    for q, name in MEDIAN_AND_P99
                ],
                width=8,
            ),
            Panel(
                "Failed batches",
                "The broker did not acknowledge them; the relay sends their events again.",
                "cps",
                [Query(per_second("shop_relay_failed_batches_total", "database"), "{{database}}")],
                width=8,
            ),
            Panel(
                "Owned and blocked shards",
                "Each database should have 16 owned shards.",
                "none",
                [
                    Query("sum by (database, instance) (shop_relay_owned_shards)", "{{database}} {{instance}}"),
                    Query("sum by (database) (shop_relay_blocked_shards)", "{{database}} blocked"),
                ],
                width=8,
            ),
        ],
    ),
    Row(
        "Consumers",
        [
            Panel(
                "Lag",
                "Messages that are not handled yet.",
                "none",
                [Query("sum by (job, topic) (shop_consumer_lag_messages)", "{{job}} {{topic}}")],
                width=8,
            ),
            Panel(
                "Events handled",
                "",
                "cps",
                [Query(per_second("shop_consumer_events_total", "job, type"), "{{job}} {{type}}")],
                width=8,
            ),
            Panel(
                "Handling, 99th percentile",
                "A batch of events of one type, including the wait for the database.",
                "s",
                [Query(quantile(0.99, "shop_consumer_handling_seconds", "job, type"), "{{job}} {{type}}")],
                width=8,
            ),
            Panel(
                "Dead letters",
                "Since the processes started. `./task dlq list` shows them.",
                "none",
                [
                    Query(
                        "sum by (topic, reason) (shop_consumer_dead_letters_total) or vector(0)", "{{topic}} {{reason}}"
                    )
                ],
                kind="stat",
                width=24,
                height=4,
            ),
        ],
    ),
    Row(
        "Reaper",
        [
            Panel(
                "Runs",
                "",
                "cps",
                [Query(per_second("shop_reaper_runs_total", "task, outcome"), "{{task}} {{outcome}}")],
                width=8,
            ),
            Panel(
                "Expired reservations, cancelled orders, purged rows, verified items",
                "",
                "cps",
                [Query(per_second("shop_reaper_done_total", "task"), "{{task}}")],
                width=8,
            ),
            Panel(
                "Time since the last success",
                "Verifications run every hour, purges too or at the times of PURGE_CRON, other tasks every second.",
                "s",
                [Query("time() - max by (task) (shop_reaper_last_success_timestamp_seconds)", "{{task}}")],
                width=8,
            ),
        ],
    ),
    Row(
        "Processes",
        [
            Panel(
                "Processes up",
                "",
                "none",
                [Query('sum by (job) (up{job=~"inventory-api|order-api|reservation-reaper|event-relay"})', "{{job}}")],
                width=6,
            ),
            Panel(
                "CPU",
                "1 is one core, the most that one process can use.",
                "none",
                [Query("rate(process_cpu_seconds_total[$__rate_interval])", "{{job}} {{instance}}")],
                width=6,
            ),
            Panel(
                "Memory",
                "",
                "bytes",
                [Query("process_resident_memory_bytes", "{{job}} {{instance}}")],
                width=6,
            ),
            Panel(
                "Open files",
                "Mostly connections.",
                "none",
                [Query("process_open_fds", "{{job}} {{instance}}")],
                width=6,
            ),
        ],
    ),
]
