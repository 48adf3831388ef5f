"""The library that the four processes share. It knows no terms of the domain.

Its folders, each above the ones after it:

process      the life of a process: signals, drain, workers, probe
rpc          gRPC server and client, health, errors as gRPC statuses
events       outbox, consumer, dead letters
batching     the coalescer, which turns concurrent calls into one transaction
api          checks of request fields, paging, money, the base of all commands
db           connections, transactions, retries, schema, idempotency keys
telemetry    logs, metrics, traces
environment  settings, ports, and what a process does before its imports
"""
