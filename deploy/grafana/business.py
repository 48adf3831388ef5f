"""What the shop sells, and what it could not sell."""

from panels import Panel, Query, Row, TracesOf
from promql import MEDIAN_AND_WORST, per_minute, quantile

_CREATE_ORDER = 'job="order-api", rpc_method="shop.order.v1.OrderService/CreateOrder"'

ROWS = [
    Row(
        "Orders",
        [
            Panel(
                "Orders entering each state",
                "Created but never confirmed: their holds run out, and they are cancelled.",
                "cpm",
                [Query(per_minute('shop_events_written_total{type=~"ORDER_.*"}', "type"), "{{type}}")],
                width=16,
            ),
            Panel(
                "Cancelled, of those created",
                "By buyers, because holds ran out, and because stock was gone.",
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
                "How long a buyer waits for an order to be taken",
                "The points are single orders: click one for its trace.",
                "s",
                [
                    Query(quantile(q, "rpc_server_call_duration_seconds", "", _CREATE_ORDER), name, exemplars=True)
                    for q, name in MEDIAN_AND_WORST
                ],
                width=12,
                traces=TracesOf(service="order-api", operation="shop.order.v1.OrderService/CreateOrder"),
            ),
            Panel(
                "Orders that were not taken",
                "By the reason that the buyer was told.",
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
                "Held, then confirmed and shipped, or given back, or run out.",
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
                "Reservations that ran out, of those made",
                "Buyers who did not come back.",
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
                "Held now",
                "For buyers who have yet to confirm. Due: past its time, and free stock already; the reaper ends it.",
                "none",
                # Every process of inventory-api counts all of them.
                [Query("max by (state) (shop_holds)", "{{state}}")],
                width=6,
            ),
            Panel(
                "Sold out: stock that was asked for and refused",
                "Each refusal is a buyer who would have bought.",
                "cpm",
                [Query(per_minute("shop_stock_refusals_total", "reason"), "{{reason}}")],
                width=6,
            ),
            Panel(
                "Rescued: holds ended at once for a buyer in need",
                "Holds past their time, taken before the reaper came by. More than a few: the reaper is late.",
                "cpm",
                [Query(per_minute("shop_holds_rescued_total"), "rescued")],
                width=6,
            ),
            Panel(
                "Stock that came in or was counted",
                "Additions and corrections.",
                "cpm",
                [Query(per_minute('shop_events_written_total{type="STOCK_UPDATED"}'), "updates")],
                width=6,
            ),
        ],
    ),
    Row(
        "What should not happen",
        [
            Panel(
                "Orders shipped with less stock than their lines",
                "Since the processes started. A person compares the shelf with the books: see the runbook.",
                "none",
                [Query("sum(shop_short_fulfilments_total) or vector(0)", "orders")],
                kind="stat",
                width=6,
            ),
            Panel(
                "Orders cancelled because they were abandoned",
                "PENDING long past their hold: an event of theirs went astray, or a call broke off in the middle.",
                "cpm",
                [Query(per_minute('shop_reaper_done_total{task="cancel-abandoned-orders"}'), "cancelled")],
                width=9,
            ),
            Panel(
                "From a change to its event in Kafka",
                "What other systems know is so old.",
                "s",
                [Query(quantile(q, "shop_relay_delay_seconds", ""), name) for q, name in MEDIAN_AND_WORST],
                width=9,
            ),
        ],
    ),
]
