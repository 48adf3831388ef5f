"""What the processes do, from a call to its event, and what they wait for."""

from panels import Panel, Query, Row, TracesOf
from promql import MEDIAN_AND_WORST, per_second, quantile

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
                "Answers, refusals and failures together.",
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
                "A refusal is an answer; what ends in UNAVAILABLE, RESOURCE_EXHAUSTED, INTERNAL or CONTENTION is ours.",
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
                "Duration, 99 of 100 calls",
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
                "Duration, every second call",
                "Waiting for a batch and the batch itself.",
                "s",
                [Query(quantile(0.5, "rpc_server_call_duration_seconds", "job, rpc_method"), "{{job}} {{rpc_method}}")],
                width=12,
                traces=_BY_METHOD,
            ),
            Panel(
                "Error budget: share of calls that fail",
                "0.1 % may. Above the lines somebody is paged: 1.44 % in an hour, 0.6 % in six hours.",
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
                "Calls between our processes, 99 of 100",
                "Retries included. Longer than the duration at the other side: connections, or a replica that is away.",
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
                "Calls in a batch",
                "Mean. It grows by itself when calls come faster than batches end.",
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
                "Calls that wait for a batch",
                "",
                "none",
                [Query("sum by (job, coalescer) (shop_coalescer_queue_requests)", "{{job}} {{coalescer}}")],
                width=6,
            ),
            Panel(
                "Wait for the batch, 99 of 100",
                "",
                "s",
                [Query(quantile(0.99, "shop_coalescer_wait_seconds", "job, coalescer"), "{{job}} {{coalescer}}")],
                width=6,
            ),
            Panel(
                "A batch, 99 of 100",
                "Its statements and its commit: what the database takes.",
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
                "In use and idle, of those allowed",
                "",
                "none",
                [
                    Query("sum by (job, pool, state) (db_client_connection_count)", "{{job}} {{pool}} {{state}}"),
                    Query("sum by (job, pool) (db_client_connection_max)", "{{job}} {{pool}} allowed"),
                ],
                width=12,
            ),
            Panel(
                "Waiting for a connection",
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
                "Age of the oldest event that waits",
                "A page is due above a minute.",
                "s",
                [Query("max by (database) (shop_outbox_oldest_event_age_seconds)", "{{database}}")],
                width=8,
                lines=[60],
            ),
            Panel(
                "Events that wait",
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
                    for q, name in MEDIAN_AND_WORST
                ],
                width=8,
            ),
            Panel(
                "Batches that failed",
                "The broker did not acknowledge them; their events are sent again.",
                "cps",
                [Query(per_second("shop_relay_failed_batches_total", "database"), "{{database}}")],
                width=8,
            ),
            Panel(
                "Shards with an owner, and blocked ones",
                "16 of each database have an owner.",
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
                "Messages that are still to be done.",
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
                "Handling, 99 of 100",
                "A list of events of one type, with what it waited for the database.",
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
                "Ended: holds, abandoned orders, rows of history",
                "",
                "cps",
                [Query(per_second("shop_reaper_done_total", "task"), "{{task}}")],
                width=8,
            ),
            Panel(
                "Time since the last success",
                "Purges are due each hour or at the times of PURGE_CRON, all else each second.",
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
                "Processes that answer",
                "",
                "none",
                [Query('sum by (job) (up{job=~"inventory-api|order-api|reservation-reaper|event-relay"})', "{{job}}")],
                width=6,
            ),
            Panel(
                "CPU",
                "1 is a whole core, which is all that one process can use.",
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
                "Connections, mostly.",
                "none",
                [Query("process_open_fds", "{{job}} {{instance}}")],
                width=6,
            ),
        ],
    ),
]
