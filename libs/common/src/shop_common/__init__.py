"""What the four processes share, and no domain word in it. One idea a module.

a call comes in   grpc_server, call_pool, valid, paging, money, timestamps, errors → status
it is decided     coalescer, coalesced (group commit); database (transactions), sql (statements over sets)
it is counted     metrics (declared beside what they count); coalescer_telemetry, consumer_metrics
it is told        outbox (the event), idempotency (the call that comes again)
others hear       consumer, received, dead_letters
others are asked  grpc_client
the process       startup, lifecycle, workers, listen, health, probe
its settings      settings, database_settings, otel_settings, unknown_settings
it tells          logs, telemetry, tracing
its tables        schema, online_ddl
"""
