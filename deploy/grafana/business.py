"""The business dashboard: orders, stock and refusals."""

from panels import Panel, Query, Row, TracesOf
from promql import MEDIAN_AND_P99, per_minute, quantile

_CREATE_ORDER = 'job="order-api", rpc_method="shop.order.v1.OrderService/CreateOrder"'

ROWS = [
    Row(
        "Orders",
        [
            Panel(
                "Orders by new status",
                "Orders that are not confirmed in time are cancelled: their reservations expire.",
                "cpm",
                [Query(per_minute('shop_events_written_total{type=~"ORDER_.*"}', "type"), "{{type}}")],
                width=16,
            ),
            Panel(
                "Cancelled orders, as a share of created ones",
                "Cancelled by users, because reservations expired, or because stock was lost.",
                "percentunit",
                [
                    Query(
                        'sum(rate(shop_events_written_total{type="ORDER_CANCELLED"}[$__rate_interval]))'
                        ' / sum(rate(shop_events_written_total{type="ORDER_CREATED"}[$__rate_interval]))',
                        "cancelled",
                    )
                ],
                width=8,
            ),
            Panel(
                "Duration of CreateOrder",
                "The points are single calls: click one for its trace.",
                "s",
                [
                    Query(quantile(q, "rpc_server_call_duration_seconds", "", _CREATE_ORDER), name, exemplars=True)
                    for q, name in MEDIAN_AND_P99
                ],
                width=12,
                traces=TracesOf(service="order-api", operation="shop.order.v1.OrderService/CreateOrder"),
            ),
            Panel(
                "Refused and failed orders",
                "By the reason in the response.",
                "cpm",
                [Query(per_minute(f"rpc_server_errors_total{{{_CREATE_ORDER}}}", "error_type"), "{{error_type}}")],
                width=12,
                traces=TracesOf(
                    service="order-api",
                    operation="shop.order.v1.OrderService/CreateOrder",
                    tags="error.type=${__field.labels.error_type}",
                ),
            ),
        ],
    ),
    Row(
        "Stock",
        [
            Panel(
                "Reservations",
                "Reserved; then confirmed and fulfilled, released, or expired.",
                "cpm",
                [
                    Query(
                        per_minute('shop_events_written_total{type=~"STOCK_(RESERV|RELEASED|FULFILLED).*"}', "type"),
                        "{{type}}",
                    )
                ],
                width=16,
            ),
            Panel(
                "Expired reservations, as a share of all",
                "Their orders were not confirmed in time.",
                "percentunit",
                [
                    Query(
                        'sum(rate(shop_events_written_total{type="STOCK_RESERVATION_EXPIRED"}[$__rate_interval]))'
                        ' / sum(rate(shop_events_written_total{type="STOCK_RESERVED"}[$__rate_interval]))',
                        "expired",
                    )
                ],
                width=8,
            ),
            Panel(
                "Held reservations",
                "Not confirmed yet. Due: past their expiry, so their stock is available; the reaper expires them.",
                "none",
                # Every process of inventory-api reports the total, so do not sum.
                [Query("max by (state) (shop_holds)", "{{state}}")],
                width=6,
            ),
            Panel(
                "Refused for lack of stock",
                "Each refusal is a lost sale.",
                "cpm",
                [Query(per_minute("shop_stock_refusals_total", "reason"), "{{reason}}")],
                width=6,
            ),
            Panel(
                "Reservations expired on demand",
                "Due reservations that a call expired to use their stock. If there are many, the reaper is late.",
                "cpm",
                [Query(per_minute("shop_holds_rescued_total"), "rescued")],
                width=6,
            ),
            Panel(
                "Stock updates",
                "Stock added, and quantities set after a count.",
                "cpm",
                [Query(per_minute('shop_events_written_total{type="STOCK_UPDATED"}'), "updates")],
                width=6,
            ),
        ],
    ),
    Row(
        "Exceptions",
        [
            Panel(
                "Orders shipped with less stock than their lines",
                "Since the processes started. A person has to count the stock: see the runbook.",
                "none",
                [Query("sum(shop_short_fulfilments_total) or vector(0)", "orders")],
                kind="stat",
                width=8,
            ),
            Panel(
                "Mismatches in the stock",
                "Found by the last verification of all items. A person has to find the cause: see the runbook.",
                "none",
                [Query("max by (kind) (shop_stock_mismatches)", "{{kind}}")],
                kind="stat",
                width=8,
            ),
            Panel(
                "Orders reconciled",
                "Their event was lost, so their reservations were released or fulfilled later. See the runbook.",
                "none",
                [Query("sum by (outcome) (increase(shop_orders_reconciled_total[1h]))", "{{outcome}}")],
                kind="stat",
                width=8,
            ),
            Panel(
                "Abandoned orders cancelled",
                "PENDING long after their reservations expired: an event was lost, or a call was interrupted.",
                "cpm",
                [Query(per_minute('shop_reaper_done_total{task="cancel-abandoned-orders"}'), "cancelled")],
                width=12,
            ),
            Panel(
                "From a change to its event in Kafka",
                "The age of the data that other systems have.",
                "s",
                [Query(quantile(q, "shop_relay_delay_seconds", ""), name) for q, name in MEDIAN_AND_P99],
                width=12,
            ),
        ],
    ),
]
