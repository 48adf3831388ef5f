"""The baseline: a straightforward implementation of the same service, on the same tables.

It uses gRPC with one thread per call and the SQLAlchemy ORM. Each call is one transaction, which locks its items with
SELECT … FOR UPDATE and writes a reservation, its allocations and an outbox row. It is correct, but leaves out features
that cost our service time: validation, idempotency and expiry.
"""
